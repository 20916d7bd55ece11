//! The connection's transport: TCP, and TLS above it.

use std::{
    io::{self, Error, ErrorKind},
    path::Path,
};

use lapin::tcp::{RustlsConnector, RustlsConnectorConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use crate::RabbitMqConfig;

/// What makes TLS connections with this configuration.
///
/// Not lapin's own way from the URL: that wants the system's authorities even where others are given, and
/// fails on a machine that has none.
pub(crate) fn connector(config: &RabbitMqConfig) -> io::Result<RustlsConnector> {
    let trust = match &config.ca_file {
        Some(path) => RustlsConnectorConfig::default().with_parsable_certificates(certificates(path)?),
        None => RustlsConnectorConfig::new_with_native_certs()?,
    };
    match &config.client_certificate {
        Some((certificate, key)) => {
            let key = PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable(key, error))?;
            trust.connector_with_single_cert(certificates(certificate)?, key)
        }
        None => trust.connector_with_no_client_auth(),
    }
}

fn certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let certificates = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let certificates: Vec<_> = certificates.map_err(|error| unreadable(path, error))?;
    if certificates.is_empty() {
        return Err(Error::new(ErrorKind::InvalidData, format!("{} has no certificate", path.display())));
    }
    Ok(certificates)
}

fn unreadable(path: &Path, error: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidData, format!("{} cannot be read: {error}", path.display()))
}
