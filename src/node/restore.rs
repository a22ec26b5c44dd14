//! Makes the store of a new member from a backup, while no node runs on it.
//!
//! The store is built in a directory of its own beside its place and moved there when it is durable: a
//! restore that breaks off leaves no store behind.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::unix_ms;
use crate::cluster::tls::{Identity, TlsError};
use crate::config::Config;
use crate::core::backup::{self, Piece};
use crate::core::eid::Eid;
use crate::core::storage::{Store as _, StoreError, Write as _};
use crate::store::redb::{FILE_NAME, Options, RedbStore};

/// Where the store is built.
const BUILD_DIR: &str = "restoring";

/// What to make: the data directory, and the EID of the node that will open it.
#[derive(Clone, Debug)]
pub struct Target {
    pub data_dir: PathBuf,
    pub eid: Eid,
}

#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error(
        "{0} holds a store already: stop its node, put the file {FILE_NAME} aside (or name another --data-dir), and \
         restore again"
    )]
    Occupied(PathBuf),
    #[error("{dir}: {error}. Nothing was restored")]
    Store { dir: PathBuf, error: StoreError },
    #[error("{path}: {error}. Nothing was restored")]
    Io { path: PathBuf, error: io::Error },
    #[error("the backup: {0}. Nothing was restored")]
    Backup(String),
    #[error("{0}")]
    Tls(#[from] TlsError),
}

/// The data directory of a configuration, and the EID of its certificate.
pub fn target_of(config: &Config) -> Result<Target, RestoreError> {
    let identity = Identity::load(&config.tls.ca, &config.tls.cert, &config.tls.key, unix_ms() / 1_000)?;
    Ok(Target { data_dir: config.data_dir.clone(), eid: identity.eid() })
}

/// Builds the store from the pieces that `next` gives, until it gives none.
pub fn restore(target: &Target, next: &mut dyn FnMut() -> Result<Option<Piece>, String>) -> Result<(), RestoreError> {
    let dir = &target.data_dir;
    let (build, place) = (dir.join(BUILD_DIR), dir.join(FILE_NAME));
    if place.exists() {
        return Err(RestoreError::Occupied(dir.clone()));
    }
    remove(&build)?;
    let built = build_in(&build, target.eid, next).and_then(|()| {
        let from = build.join(FILE_NAME);
        fs::rename(&from, &place).map_err(in_path(&from))?;
        fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(in_path(dir))
    });
    remove(&build)?;
    built
}

fn build_in(
    build: &Path,
    eid: Eid,
    next: &mut dyn FnMut() -> Result<Option<Piece>, String>,
) -> Result<(), RestoreError> {
    let fault = |error| RestoreError::Store { dir: build.to_path_buf(), error };
    let mut store = RedbStore::open(build, &Options::new(eid)).map_err(fault)?;
    let mut head = 0;
    // A piece is a transaction: bounded in size, and nobody reads before the last one is durable.
    while let Some(piece) = next().map_err(RestoreError::Backup)? {
        let mut write = store.write().map_err(fault)?;
        backup::restore(&mut write, piece, &mut head).map_err(fault)?;
        write.commit().map_err(fault)?;
    }
    Ok(())
}

fn remove(build: &Path) -> Result<(), RestoreError> {
    match fs::remove_dir_all(build) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(in_path(build)(error)),
        _ => Ok(()),
    }
}

fn in_path(path: &Path) -> impl FnOnce(io::Error) -> RestoreError + use<> {
    let path = path.to_path_buf();
    |error| RestoreError::Io { path, error }
}
