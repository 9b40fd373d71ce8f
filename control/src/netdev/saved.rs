//! Files that outlive a killed process: written whole or not at all, absent when empty.
//!
//! Those of [`save`] outlive a power loss too. Those of [`save_for_boot`] say what is so until the next start of the
//! machine, and are not waited for: a disk in use takes tens of milliseconds for that. A killed process leaves them
//! whole (a rename is all or nothing to everybody who looks), a power loss may leave the one before, or one cut short
//! or of zeros, and [`load_for_boot`] takes the latter for none.
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

/// As [`load`], for what [`save_for_boot`] wrote: what is no JSON at all is of an earlier boot, and nothing.
/// What is JSON, but not this, is an error as ever: it is another program's, or another version's.
pub(crate) fn load_for_boot<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    match load(path) {
        Err(Error::Record { source, .. }) if is_cut_short(&source) => Ok(None),
        other => other,
    }
}

fn is_cut_short(error: &io::Error) -> bool {
    let json = error.get_ref().and_then(|e| e.downcast_ref::<serde_json::Error>());
    json.is_some_and(|e| e.is_eof() || e.is_syntax())
}

/// The error for a file of another version than this program's.
pub(crate) fn wrong_version(path: &Path, theirs: u32, ours: u32) -> Error {
    let text = format!("its version is {theirs}, this program's is {ours}");
    let source = io::Error::new(io::ErrorKind::InvalidData, text);
    Error::Record { what: "read", path: path.to_owned(), source }
}

/// Puts `content` in the place of what the file holds; `None` removes the file.
pub(crate) fn save<T: Serialize>(path: &Path, content: Option<&T>) -> Result<(), Error> {
    put(path, content, true)
}

/// As [`save`], for what means nothing after the machine has started anew: the disk is not waited for.
pub(crate) fn save_for_boot<T: Serialize>(path: &Path, content: Option<&T>) -> Result<(), Error> {
    put(path, content, false)
}

fn put<T: Serialize>(path: &Path, content: Option<&T>, sync: bool) -> Result<(), Error> {
    let write = || -> io::Result<()> {
        let Some(content) = content else {
            return match fs::remove_file(path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
                _ => Ok(()),
            };
        };
        let beside = path.with_extension("json.new");
        let placed = fs::File::create(&beside).and_then(|mut file| {
            file.write_all(&serde_json::to_vec(content)?)?;
            if sync {
                file.sync_all()?;
            }
            fs::rename(&beside, path)
        });
        if placed.is_err() {
            // What there was room for on a full disk takes it from others.
            let _ = fs::remove_file(&beside);
        }
        placed
    };
    write().map_err(|source| Error::Record { what: "write", path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a power loss may leave of a file that the disk was not waited for: any beginning of it, zeros after it.
    #[test]
    fn what_a_power_loss_left_is_none() {
        let path = std::env::temp_dir().join(format!("fp-saved-{}.json", std::process::id()));
        let content = vec![(7u32, "text".to_owned()), (8, String::new())];
        save_for_boot(&path, Some(&content)).unwrap();
        assert_eq!(load_for_boot(&path).unwrap(), Some(content.clone()));
        assert_eq!(load(&path).unwrap(), Some(content.clone()));
        let whole = fs::read(&path).unwrap();
        for len in 0..whole.len() {
            fs::write(&path, &whole[..len]).unwrap();
            assert_eq!(load_for_boot::<Vec<(u32, String)>>(&path).unwrap(), None, "{len} bytes");
            load::<Vec<(u32, String)>>(&path).unwrap_err();
            let mut zeros = whole.clone();
            zeros[len..].fill(0);
            fs::write(&path, &zeros).unwrap();
            assert_eq!(load_for_boot::<Vec<(u32, String)>>(&path).unwrap(), None, "zeros from {len}");
        }
        // Whole, and of something else: nobody may take it for nothing and give out what it says is taken.
        for other in ["{}", "[[1]]", "[[\"a\",\"b\"]]", "null"] {
            fs::write(&path, other).unwrap();
            load_for_boot::<Vec<(u32, String)>>(&path).unwrap_err();
        }
        save_for_boot::<()>(&path, None).unwrap();
        assert!(!path.exists());
    }
}
