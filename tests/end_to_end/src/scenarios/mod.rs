//! What is done to relays and servers, and with which databases and brokers: a test for each pair of names.

mod crashes;
mod cuts;
mod outages;
mod topics;

/// Tests of one scenario, named after its databases and brokers.
macro_rules! tests {
    ($scenario:path => $($database:ident { $($broker:ident)+ })+) => {
        $(mod $database {
            use crate::{brokers, databases};
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $broker() {
                    let database = databases::Kind::named(stringify!($database));
                    $scenario(database, brokers::Kind::named(stringify!($broker))).await;
                }
            )+
        })+
    };
}

/// Every database with every broker: two relays at work, one of them is killed.
mod matrix {
    tests! { crate::scenarios::crashes::killed_once =>
        postgres { kafka rabbitmq nats }
        mysql { kafka rabbitmq nats }
        mariadb { kafka rabbitmq nats }
        sqlite { kafka rabbitmq nats }
        mongodb { kafka rabbitmq nats }
    }
}

/// Relays are killed in mid-batch, again and again.
mod killed {
    tests! { crate::scenarios::crashes::killed =>
        postgres { kafka }
        mysql { nats }
        mariadb { rabbitmq }
        mongodb { nats }
    }
}

/// A relay stops for longer than its lease, and wakes. A process that is frozen while it writes to SQLite
/// keeps the file locked for everybody, so there is nothing to take over.
mod frozen {
    tests! { crate::scenarios::crashes::frozen =>
        postgres { kafka }
        mysql { nats }
        mariadb { nats }
        mongodb { nats }
    }
}

/// Relays are replaced one after the other.
mod restarted {
    tests! { crate::scenarios::crashes::restarted =>
        postgres { kafka }
        sqlite { kafka }
    }
}

/// Connections to the database are cut while a settle is on its way.
mod cut {
    tests! { crate::scenarios::cuts::cut =>
        postgres { kafka }
        mysql { kafka }
        mariadb { kafka }
        mongodb { kafka }
    }
}

/// The database stops and crashes and comes back.
mod database_restarted {
    tests! { crate::scenarios::outages::database_restarted =>
        postgres { kafka }
        mysql { kafka }
        mariadb { kafka }
        mongodb { kafka }
    }
}

/// The broker stops and crashes and comes back after a while.
mod broker_restarted {
    tests! { crate::scenarios::outages::broker_restarted =>
        postgres { kafka rabbitmq nats }
    }
}
