//! [`ReservedPorts`]: keeps ports from the kernel, so that it gives none of them to the node's own
//! connections (`net.ipv4.ip_local_reserved_ports`, which is for both families).
//!
//! What the administrator reserved stays so. What was added stands in a record on disk before it is added, so that
//! also the next daemon after one that was killed can take it back.
#![forbid(unsafe_code)]

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Error, saved, sysctl};

/// Name of the record in the state directory.
const FILE: &str = "reserved-ports.json";
/// Version of its form.
const VERSION: u32 = 1;
/// The kernel's list.
pub(crate) const SYSCTL: &str = "ipv4/ip_local_reserved_ports";

/// What was added to the kernel's list.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Content {
    version: u32,
    added: Vec<(u16, u16)>,
}

/// Ports kept from the kernel. Dropping it releases nothing: see [`ReservedPorts::release`].
#[derive(Debug)]
pub struct ReservedPorts {
    sysctl: PathBuf,
    record: PathBuf,
    added: Ports,
}

impl ReservedPorts {
    /// Reads what an earlier daemon recorded in `state_dir`, which must exist.
    ///
    /// # Errors
    /// [`Error::Record`].
    pub fn open(state_dir: &Path) -> Result<Self, Error> {
        Self::at(state_dir, &sysctl::path(SYSCTL))
    }

    fn at(state_dir: &Path, sysctl: &Path) -> Result<Self, Error> {
        let record = state_dir.join(FILE);
        let content: Option<Content> = saved::load(&record)?;
        let added = match content {
            Some(c) if c.version != VERSION => {
                return Err(saved::wrong_version(&record, c.version, VERSION));
            }
            Some(c) => c.added.into_iter().collect(),
            None => Ports::default(),
        };
        Ok(Self { sysctl: sysctl.to_owned(), record, added })
    }

    /// Ranges (first and last) that are reserved by this record.
    #[must_use]
    pub fn reserved(&self) -> Vec<(u16, u16)> {
        self.added.ranges()
    }

    /// Reserves the ports of these ranges (first and last), and those only: what was reserved before by this record is
    /// released.
    ///
    /// # Errors
    /// [`Error::Record`], also when the kernel's list cannot be read or written; nothing is changed then.
    pub fn reserve(&mut self, ranges: &[(u16, u16)]) -> Result<(), Error> {
        let now = self.read()?;
        let theirs = now.without(&self.added);
        let ours = ranges.iter().copied().collect::<Ports>().without(&theirs);
        let before = std::mem::replace(&mut self.added, ours);
        // In the record is what may be ours on both sides of the change.
        self.save(&self.added.with(&before))?;
        let wanted = theirs.with(&self.added);
        if wanted != now
            && let Err(e) = self.write(&wanted)
        {
            self.added = before;
            let _ = self.save(&self.added);
            return Err(e);
        }
        self.save(&self.added)
    }

    /// Takes the reserved ports off the kernel's list again. Without any it does nothing.
    ///
    /// # Errors
    /// [`Error::Record`]; the record stays then.
    pub fn release(&mut self) -> Result<(), Error> {
        if self.added.is_empty() {
            return Ok(());
        }
        let now = self.read()?;
        let theirs = now.without(&self.added);
        if theirs != now {
            self.write(&theirs)?;
        }
        self.added = Ports::default();
        self.save(&self.added)
    }

    fn save(&self, added: &Ports) -> Result<(), Error> {
        let content = Content { version: VERSION, added: added.ranges() };
        saved::save(&self.record, (!added.is_empty()).then_some(&content))
    }

    fn read(&self) -> Result<Ports, Error> {
        let bad = |source| Error::Record { what: "read", path: self.sysctl.clone(), source };
        let text = one_read(&self.sysctl).map_err(bad)?;
        Ports::parse(&text)
            .ok_or_else(|| bad(std::io::Error::other(format!("not a list of ports: {text:?}"))))
    }

    fn write(&self, ports: &Ports) -> Result<(), Error> {
        // A write of nothing at all would leave the list as it is.
        fs::write(&self.sysctl, format!("{ports}\n")).map_err(|source| Error::Record {
            what: "write",
            path: self.sysctl.clone(),
            source,
        })
    }
}

/// A file's text by a single `read`: the kernel answers only the first one on its list of ports, and cuts the list where
/// the buffer ends, so the standard library's small first reads would lose ports.
fn one_read(path: &Path) -> std::io::Result<String> {
    // Every port alone, with its comma, is less.
    let mut text = vec![0; 512 << 10];
    let len = fs::File::open(path)?.read(&mut text)?;
    text.truncate(len);
    String::from_utf8(text).map_err(|e| std::io::Error::new(std::io::ErrorKind::InvalidData, e))
}

/// A set of ports.
#[derive(Clone, PartialEq, Eq)]
struct Ports(Box<[u64; 1024]>);

impl Default for Ports {
    fn default() -> Self {
        Self(Box::new([0; 1024]))
    }
}

impl FromIterator<(u16, u16)> for Ports {
    fn from_iter<I: IntoIterator<Item = (u16, u16)>>(ranges: I) -> Self {
        let mut ports = Self::default();
        for port in ranges.into_iter().flat_map(|(first, last)| first..=last) {
            if let Some(word) = ports.0.get_mut(usize::from(port / 64)) {
                *word |= 1 << (port % 64);
            }
        }
        ports
    }
}

impl Ports {
    /// As the kernel writes it: `1,5-9`; blanks are of no account.
    fn parse(text: &str) -> Option<Self> {
        let parts = text.split([',', '\n']).map(str::trim).filter(|part| !part.is_empty());
        let range = |part: &str| match part.split_once('-') {
            Some((first, last)) => Some((first.parse().ok()?, last.parse().ok()?)),
            None => part.parse().ok().map(|port| (port, port)),
        };
        parts.map(range).collect()
    }

    fn ranges(&self) -> Vec<(u16, u16)> {
        let mut out: Vec<(u16, u16)> = Vec::new();
        for port in (0..=u16::MAX).filter(|p| self.holds(*p)) {
            match out.last_mut() {
                Some((_, last)) if last.checked_add(1) == Some(port) => *last = port,
                _ => out.push((port, port)),
            }
        }
        out
    }

    fn holds(&self, port: u16) -> bool {
        self.0.get(usize::from(port / 64)).is_some_and(|word| word >> (port % 64) & 1 == 1)
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    fn with(&self, other: &Self) -> Self {
        self.merge(other, |a, b| a | b)
    }

    fn without(&self, other: &Self) -> Self {
        self.merge(other, |a, b| a & !b)
    }

    fn merge(&self, other: &Self, how: impl Fn(u64, u64) -> u64) -> Self {
        let mut out = self.clone();
        out.0.iter_mut().zip(other.0.iter()).for_each(|(a, b)| *a = how(*a, *b));
        out
    }
}

impl std::fmt::Display for Ports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, (first, last)) in self.ranges().into_iter().enumerate() {
            f.write_str(if i > 0 { "," } else { "" })?;
            if first == last { write!(f, "{first}")? } else { write!(f, "{first}-{last}")? }
        }
        Ok(())
    }
}

impl std::fmt::Debug for Ports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ports({self})")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// A state directory, and a file that behaves as the kernel's list.
    struct World(PathBuf);

    impl World {
        fn new(list: &str) -> Self {
            static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
            let n = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let dir = std::env::temp_dir().join(format!("fastpath-reserved-{}-{n}", std::process::id()));
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join("sysctl"), list).unwrap();
            Self(dir)
        }

        fn open(&self) -> ReservedPorts {
            ReservedPorts::at(&self.0, &self.0.join("sysctl")).unwrap()
        }

        fn list(&self) -> String {
            fs::read_to_string(self.0.join("sysctl")).unwrap().trim_end().to_owned()
        }

        fn recorded(&self) -> bool {
            self.0.join(FILE).exists()
        }
    }

    impl Drop for World {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn added_to_what_is_there_and_taken_back() {
        for (before, during) in [
            ("\n", "40000-50000"),
            ("8080,9148\n", "8080,9148,40000-50000"),
            ("45000-45010,50001\n", "40000-50001"),
            ("30000-60000\n", "30000-60000"),
        ] {
            let world = World::new(before);
            let mut ports = world.open();
            ports.reserve(&[(40_000, 50_000)]).unwrap();
            assert_eq!(world.list(), during);
            assert_eq!(world.recorded(), before.trim() != during);
            ports.release().unwrap();
            assert_eq!(world.list(), before.trim_end());
            assert!(!world.recorded());
        }
    }

    #[test]
    fn single_ports_come_and_go_beside_a_range() {
        let world = World::new("30001\n");
        let mut ports = world.open();
        for (wanted, list) in [
            (&[(40_000, 40_001), (30_000, 30_000), (30_001, 30_001)][..], "30000-30001,40000-40001"),
            (&[(40_000, 40_001), (30_002, 30_002)], "30001-30002,40000-40001"),
            (&[(40_000, 40_001)], "30001,40000-40001"),
        ] {
            ports.reserve(wanted).unwrap();
            assert_eq!(world.list(), list);
        }
        ports.release().unwrap();
        assert_eq!(world.list(), "30001");
    }

    #[test]
    fn the_next_daemon_takes_back_what_a_killed_one_added() {
        let world = World::new("8080,41000\n");
        world.open().reserve(&[(40_000, 42_000)]).unwrap();
        let mut next = world.open();
        next.reserve(&[(50_000, 50_001)]).unwrap();
        assert_eq!(world.list(), "8080,41000,50000-50001");
        drop(next);
        let mut last = world.open();
        last.release().unwrap();
        assert_eq!(world.list(), "8080,41000");
        assert!(!world.recorded());
        last.release().unwrap();
    }

    #[test]
    fn what_others_change_meanwhile_stays() {
        let world = World::new("1\n");
        let mut ports = world.open();
        ports.reserve(&[(40_000, 40_001)]).unwrap();
        fs::write(world.0.join("sysctl"), "2,40000-40001,60000\n").unwrap();
        ports.release().unwrap();
        assert_eq!(world.list(), "2,60000");
        // Somebody else has cleared the list.
        ports.reserve(&[(40_000, 40_001)]).unwrap();
        fs::write(world.0.join("sysctl"), "\n").unwrap();
        ports.release().unwrap();
        assert_eq!(world.list(), "");
    }

    #[test]
    fn failures_change_nothing() {
        let world = World::new("1\n");
        let mut ports = world.open();
        fs::remove_file(world.0.join("sysctl")).unwrap();
        // A folder can be neither read nor written.
        fs::create_dir(world.0.join("sysctl")).unwrap();
        let text = ports.reserve(&[(40_000, 40_001)]).unwrap_err().to_string();
        assert!(text.starts_with("cannot read ") && text.contains("sysctl"), "{text}");
        assert!(!world.recorded() && ports.added.is_empty());
        ports.release().unwrap();
        let odd = World::new("1-x\n");
        let text = odd.open().reserve(&[(40_000, 40_001)]).unwrap_err().to_string();
        assert!(text.contains("not a list of ports"), "{text}");
        fs::write(odd.0.join(FILE), br#"{"version": 9, "added": []}"#).unwrap();
        let text = ReservedPorts::at(&odd.0, &odd.0.join("sysctl")).unwrap_err().to_string();
        assert!(text.contains("its version is 9"), "{text}");
    }

    proptest! {
        /// Text and back, and the operations, against a plain set.
        #[test]
        fn sets_of_ports(a in ranges(), b in ranges()) {
            let set = |r: &[(u16, u16)]| r.iter().flat_map(|(f, l)| *f..=*l).collect::<BTreeSet<u16>>();
            let of = |p: &Ports| set(&p.ranges());
            let (x, y) = (a.iter().copied().collect::<Ports>(), b.iter().copied().collect::<Ports>());
            let (p, q) = (set(&a), set(&b));
            prop_assert_eq!(of(&x.with(&y)), p.union(&q).copied().collect::<BTreeSet<_>>());
            prop_assert_eq!(of(&x.without(&y)), p.difference(&q).copied().collect::<BTreeSet<_>>());
            prop_assert_eq!(Ports::parse(&x.to_string()), Some(x.clone()));
            prop_assert_eq!(x.is_empty(), p.is_empty());
        }
    }

    fn ranges() -> impl Strategy<Value = Vec<(u16, u16)>> {
        let range = (any::<u16>(), 0u16..300).prop_map(|(first, len)| (first, first.saturating_add(len)));
        prop::collection::vec(range, 0..5)
    }
}
