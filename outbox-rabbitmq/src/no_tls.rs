//! In the place of `tls`, in a build without the feature of that name: a connection that needs TLS is
//! refused.

use std::{
    convert::Infallible,
    io::{Error, ErrorKind},
};

use crate::RabbitMqConfig;

pub(crate) fn connector(_: &RabbitMqConfig) -> Result<Infallible, Error> {
    Err(Error::new(ErrorKind::Unsupported, "this program was built without it; enable the feature tls"))
}
