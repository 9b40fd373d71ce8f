//! Files in the state directory that outlive a killed daemon: written whole or not at all, absent when empty.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Error;

/// What the file holds; `None` when there is none.
pub(crate) fn load<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    let bad = |source| Error::Record { what: "read", path: path.to_owned(), source };
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| bad(e.into())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(bad(e)),
    }
}

/// The error for a file of another version than this program's.
pub(crate) fn wrong_version(path: &Path, theirs: u32, ours: u32) -> Error {
    let text = format!("its version is {theirs}, this program's is {ours}");
    let source = io::Error::new(io::ErrorKind::InvalidData, text);
    Error::Record { what: "read", path: path.to_owned(), source }
}

/// Puts `content` in the place of what the file holds; `None` removes the file.
pub(crate) fn save<T: Serialize>(path: &Path, content: Option<&T>) -> Result<(), Error> {
    let write = || -> io::Result<()> {
        let Some(content) = content else {
            return match fs::remove_file(path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
                _ => Ok(()),
            };
        };
        let beside = path.with_extension("json.new");
        let mut file = fs::File::create(&beside)?;
        file.write_all(&serde_json::to_vec_pretty(content)?)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    write().map_err(|source| Error::Record { what: "write", path: path.to_owned(), source })
}
