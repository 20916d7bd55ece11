//! Who may have the servers.

use std::{fs::File, path::Path};

/// A test's turn with the servers: shared by those that only use them, exclusive for those that stop them. A
/// lock on a file, since tests may be threads or processes.
#[derive(Debug)]
pub(crate) struct Turn {
    _lock: File,
}

impl Turn {
    pub(crate) fn shared() -> Self {
        let lock = lock_file();
        lock.lock_shared().unwrap();
        Self { _lock: lock }
    }

    pub(crate) fn exclusive() -> Self {
        let lock = lock_file();
        lock.lock().unwrap();
        Self { _lock: lock }
    }
}

fn lock_file() -> File {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("end-to-end-servers.lock");
    File::options().create(true).truncate(false).write(true).open(path).unwrap()
}
