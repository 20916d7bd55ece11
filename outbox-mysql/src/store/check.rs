//! What would break a guarantee, and what costs throughput: looked for at start, named all at once. Changes
//! nothing.

mod server;
mod tables;

pub(crate) use tables::{Wanted, inspect};

use outbox_core::{Finding, StoreError, StoreErrorKind};
use sqlx::{ConnectOptions as _, Connection as _};

use crate::{
    config::CONNECT_TIMEOUT,
    database::{Database, RELAY_SETTINGS},
    error::{NO_DATABASE, classify, number, within},
};

pub(super) async fn check(database: &Database) -> Result<Vec<Finding>, StoreError> {
    // Directly and not by the pool, which would try again and again before it says what is wrong.
    let options = database.pool.connect_options();
    let mut direct = match tokio::time::timeout(CONNECT_TIMEOUT, options.connect()).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return Ok(vec![unreachable(database, &error)]),
        Err(_) => return Ok(vec![unreachable(database, &sqlx::Error::PoolTimedOut)]),
    };
    let mut findings = Vec::new();
    let what = "check the outbox";
    let mut pooled = match database.pool.acquire().await {
        Ok(connection) => connection,
        Err(error) => return Ok(vec![few_connections(&error)]),
    };
    within(what, server::pool(&mut pooled, &mut findings)).await?;
    within(what, async { sqlx::raw_sql(RELAY_SETTINGS).execute(&mut direct).await }).await?;
    let too_old = within(what, server::server(database, &mut direct, &mut findings)).await?;
    if !too_old {
        within(what, tables::tables(database, &mut direct, &mut findings)).await?;
    }
    within(what, direct.close()).await?;
    Ok(findings)
}

fn few_connections(error: &sqlx::Error) -> Finding {
    Finding::error(
        "connections",
        format!("the pool gives no connection while another one is open: {error}"),
        "a relay needs two connections beside its pool: raise the limit of the user, the pool or the server",
    )
}

/// The driver calls it a wrong configuration when it will not authenticate without TLS, and invalid data when
/// it does not accept a certificate.
fn is_encryption(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Tls(_) | sqlx::Error::Configuration(_) => true,
        sqlx::Error::Io(error) => error.kind() == std::io::ErrorKind::InvalidData,
        _ => false,
    }
}

fn unreachable(database: &Database, error: &sqlx::Error) -> Finding {
    let options = database.pool.connect_options();
    let place = format!(
        "the server at {}:{}, database {:?}, user {:?}",
        options.get_host(),
        options.get_port(),
        options.get_database().unwrap_or_default(),
        options.get_username()
    );
    let problem = format!("{place}: {error}");
    if is_encryption(error) {
        return Finding::error(
            "encryption",
            problem,
            "connect with TLS (`ssl-mode=REQUIRED`, or `VERIFY_CA` with `ssl-ca`), and name the right certificates",
        );
    }
    match (classify(error), number(error)) {
        (_, Some(NO_DATABASE)) => {
            Finding::error("missing-database", problem, "create the database, or correct the url")
        }
        (StoreErrorKind::Denied, _) => Finding::error(
            "denied",
            problem,
            "correct the user and the password of the url, and give it TLS where the account demands that",
        ),
        _ => {
            Finding::error("unreachable", problem, "start the server, open the way to it, or correct the url")
        }
    }
}
