//! How long an idle core of a virtual machine looks out for work before it is given back to the hypervisor: a parameter
//! of the kernel's idle governor haltpoll, for all cores (`workers.halt_poll_us`).
//!
//! What it was stands in a record on disk before it is changed, so that also the next daemon after one that was killed
//! can put it back.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::netdev::{Error, saved};

/// In nanoseconds; there where the kernel has the governor.
const PARAMETER: &str = "/sys/module/haltpoll/parameters/guest_halt_poll_ns";
/// The idle governor in use.
const GOVERNOR: &str = "/sys/devices/system/cpu/cpuidle/current_governor_ro";
/// Name of the record in the state directory.
const FILE: &str = "halt-poll.json";
/// Version of its form.
const VERSION: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct Content {
    version: u32,
    /// Nanoseconds found, and set instead.
    before: u64,
    ours: u64,
}

/// The parameter as raised. Dropping it puts nothing back: see [`HaltPoll::release`].
#[derive(Debug)]
pub(super) struct HaltPoll {
    parameter: PathBuf,
    record: PathBuf,
}

impl HaltPoll {
    /// Raises the parameter to what is configured, if it is less, and puts back what an earlier daemon left; with what
    /// could not be done, which is no reason not to start.
    pub(super) fn open(config: &Config) -> (Self, Option<String>) {
        let this = Self::at(Path::new(PARAMETER), &config.daemon.state_dir);
        let wanted = u64::try_from(config.workers.halt_poll.as_nanos()).unwrap_or(u64::MAX);
        let governor = fs::read_to_string(GOVERNOR).unwrap_or_default();
        if wanted > 0 && governor.trim() != "haltpoll" {
            tracing::info!(
                "workers.halt_poll_us: the idle governor is {:?}, not haltpoll: no effect",
                governor.trim()
            );
        }
        let done = this.release().and_then(|()| this.raise(wanted));
        let problem = done.err().map(|e| format!("workers.halt_poll_us: {e}"));
        if let Some(problem) = &problem {
            tracing::warn!("{problem}");
        }
        (this, problem)
    }

    fn at(parameter: &Path, state_dir: &Path) -> Self {
        Self { parameter: parameter.to_owned(), record: state_dir.join(FILE) }
    }

    fn raise(&self, wanted: u64) -> Result<(), Error> {
        if wanted == 0 {
            return Ok(());
        }
        let Some(before) = self.read()? else { return Ok(()) };
        if before >= wanted {
            return Ok(());
        }
        saved::save(&self.record, Some(&Content { version: VERSION, before, ours: wanted }))?;
        self.write(wanted).inspect_err(|_| {
            // Nothing was changed: what the parameter is later is somebody else's will.
            let _ = saved::save::<Content>(&self.record, None);
        })
    }

    /// Puts back what was found, unless somebody else has changed it since.
    ///
    /// # Errors
    /// [`Error::Record`]; the record stays then.
    pub(super) fn release(&self) -> Result<(), Error> {
        let Some(content) = saved::load::<Content>(&self.record)? else { return Ok(()) };
        if content.version != VERSION {
            return Err(saved::wrong_version(&self.record, content.version, VERSION));
        }
        if self.read()? == Some(content.ours) {
            self.write(content.before)?;
        }
        saved::save::<Content>(&self.record, None)
    }

    /// `None` when this kernel has no such parameter.
    fn read(&self) -> Result<Option<u64>, Error> {
        let bad = |source| Error::Record { what: "read", path: self.parameter.clone(), source };
        match fs::read_to_string(&self.parameter) {
            Ok(text) => text.trim().parse().map(Some).map_err(|e| bad(io::Error::other(e))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(bad(e)),
        }
    }

    fn write(&self, nanos: u64) -> Result<(), Error> {
        fs::write(&self.parameter, nanos.to_string()).map_err(|source| Error::Record {
            what: "write",
            path: self.parameter.clone(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(PathBuf);

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn raised_and_put_back() {
        let folder = Folder(std::env::temp_dir().join(format!("fastpath-halt-poll-{}", std::process::id())));
        fs::create_dir_all(&folder.0).unwrap();
        let file = folder.0.join("parameter");
        let here = || HaltPoll::at(&file, &folder.0);
        let value = || fs::read_to_string(&file).unwrap().trim().to_owned();

        here().raise(5).unwrap();
        assert!(!file.exists(), "a kernel without the parameter");
        fs::write(&file, "7\n").unwrap();
        here().raise(0).unwrap();
        here().raise(7).unwrap();
        here().release().unwrap();
        assert_eq!(value(), "7", "nothing to change, nothing to put back");

        here().raise(200_000).unwrap();
        assert_eq!(value(), "200000");
        // Another daemon, after this one was killed.
        here().release().unwrap();
        assert_eq!(value(), "7");
        here().release().unwrap();
        assert!(!here().record.exists());

        here().raise(200_000).unwrap();
        fs::write(&file, "99\n").unwrap();
        here().release().unwrap();
        assert_eq!(value(), "99", "an administrator's since then");
        assert!(!here().record.exists());

        fs::write(&file, "much\n").unwrap();
        assert!(here().raise(5).unwrap_err().to_string().contains("parameter"));
    }
}
