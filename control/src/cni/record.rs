//! Endpoint records: what ADD made, one file for each attachment. Plugin and daemon both read them.
//!
//! A record is written before anything is made and removed when all of it is gone but our own addresses, which name their
//! owner themselves, so whatever a killed plugin leaves behind is found. `deleting` is set first of all by whoever takes it down: from then on the daemon takes no
//! notice of it. A record is of one boot, and the disk is waited for only where it is to tell GC, after a power loss,
//! what another IPAM plugin has given out.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use fastpath::packet::Mac;
use serde::{Deserialize, Serialize};

use super::env::PodRef;
use crate::netdev::saved;

/// Version of the files.
const VERSION: u32 = 1;
/// Folder of the records in the data folder.
const FOLDER: &str = "endpoints";

/// Names an attachment: container and interface. (Both are of one machine, so the network's name adds nothing.)
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    /// Container id.
    pub container: String,
    /// Interface in the container.
    pub ifname: String,
}

impl Key {
    /// Name of the host's end of the veth: `fpc` and 12 hexadecimal digits, always the same for one attachment.
    #[must_use]
    pub fn device(&self) -> String {
        format!("{DEVICE_PREFIX}{:012x}", self.hash(0) >> 16)
    }

    /// Ethernet address of an end of the veth: locally administered, always the same for one attachment.
    #[must_use]
    pub fn mac(&self, pod: bool) -> Mac {
        let [_, _, _, a, b, c, d, e] = self.hash(1 + u8::from(pod)).to_be_bytes();
        Mac([0x02, a, b, c, d, e])
    }

    /// FNV-1a, which is the same in every build: names must be found again after an update.
    fn hash(&self, seed: u8) -> u64 {
        let bytes = self.container.bytes().chain([0]).chain(self.ifname.bytes()).chain([0, seed]);
        let hash =
            bytes.fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
        // FNV's upper bits mix the last bytes poorly (finalizer of MurmurHash3).
        let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash ^ (hash >> 33)
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of container {}", self.ifname, self.container)
    }
}

const DEVICE_PREFIX: &str = "fpc";

/// Whether a device's name is one that [`Key::device`] makes.
#[must_use]
pub fn is_our_device(name: &str) -> bool {
    name.strip_prefix(DEVICE_PREFIX)
        .is_some_and(|rest| rest.len() == 12 && rest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

/// What ADD made for an attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Version of the file.
    pub(crate) version: u32,
    /// The attachment.
    #[serde(flatten)]
    pub key: Key,
    /// Name of the network.
    pub network: String,
    /// The container's network namespace, as the runtime named it.
    pub netns: PathBuf,
    /// Its pod.
    pub pod: PodRef,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// Host's end of the veth.
    pub device: String,
    /// Ethernet address of the pod's end.
    #[serde(with = "mac_text")]
    pub mac: Mac,
    /// IPAM plugin that gave the addresses; `None` is our own.
    #[serde(default)]
    pub ipam: Option<String>,
    /// When it was made, in microseconds since 1970: of two for one pod the newer counts.
    pub created_us: u64,
    /// The kernel's boot it was made in: devices of another are gone.
    pub boot: String,
    /// It is being taken down.
    #[serde(default)]
    pub deleting: bool,
}

/// What a new record needs to be told.
#[derive(Clone, Debug)]
pub struct NewRecord {
    /// Name of the network.
    pub network: String,
    /// The container's network namespace.
    pub netns: PathBuf,
    /// Its pod.
    pub pod: PodRef,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// IPAM plugin that gave the addresses; `None` is our own.
    pub ipam: Option<String>,
}

impl Record {
    /// A record made now.
    #[must_use]
    pub fn new(key: Key, new: NewRecord) -> Self {
        let NewRecord { network, netns, pod, addresses, ipam } = new;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            version: VERSION,
            device: key.device(),
            mac: key.mac(true),
            network,
            netns,
            pod,
            addresses,
            ipam,
            created_us: u64::try_from(now.as_micros()).unwrap_or(u64::MAX),
            boot: boot_id(),
            deleting: false,
            key,
        }
    }
}

/// The kernel's id of this boot; empty where it has none.
#[must_use]
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}

mod mac_text {
    use fastpath::packet::Mac;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(mac: &Mac, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(mac)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Mac, D::Error> {
        let text = String::deserialize(d)?;
        text.parse().map_err(|_| serde::de::Error::custom(format!("{text:?} is not a MAC address")))
    }
}

/// The folder of records.
#[derive(Clone, Debug)]
pub struct Store {
    folder: PathBuf,
}

impl Store {
    /// Of a data folder; it need not exist.
    #[must_use]
    pub fn of(data_dir: &Path) -> Self {
        Self { folder: data_dir.join(FOLDER) }
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.folder.join(format!("{}.json", key.device()))
    }

    /// The record of an attachment, if there is one.
    ///
    /// # Errors
    /// It cannot be read, or is another's.
    pub fn read(&self, key: &Key) -> Result<Option<Record>, StoreError> {
        let path = self.path(key);
        let record = load(&path)?;
        match record {
            Some(r) if r.key != *key => {
                Err(StoreError::Taken { path, device: key.device(), other: Box::new(r.key) })
            }
            record => Ok(record),
        }
    }

    /// As [`Store::read`], for taking it down: what is no record, or one of another version, counts as none, unless it
    /// names another attachment.
    ///
    /// # Errors
    /// It cannot be read, or is another's.
    pub fn read_if_any(&self, key: &Key) -> Result<Option<Record>, StoreError> {
        match self.read(key) {
            Err(StoreError::Wrong { path, .. }) => match saved::load::<Key>(&path) {
                Ok(Some(other)) if other != *key => {
                    Err(StoreError::Taken { path, device: key.device(), other: Box::new(other) })
                }
                _ => Ok(None),
            },
            other => other,
        }
    }

    /// Removes a file that [`Store::all`] says is wrong, if it is of this network or names none. Returns whether it did.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove_wrong(&self, path: &Path, network: &str) -> Result<bool, StoreError> {
        #[derive(Deserialize)]
        struct OfNetwork {
            network: String,
        }
        if matches!(saved::load::<OfNetwork>(path), Ok(Some(of)) if of.network != network) {
            return Ok(false);
        }
        saved::save::<Record>(path, None)?;
        Ok(true)
    }

    /// Writes a record, whole or not at all.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, record: &Record) -> Result<(), StoreError> {
        std::fs::create_dir_all(&self.folder)
            .map_err(|source| StoreError::Folder { path: self.folder.clone(), source })?;
        let path = self.path(&record.key);
        let saved = match record.ipam {
            Some(_) => saved::save(&path, Some(record)),
            None => saved::save_for_boot(&path, Some(record)),
        };
        Ok(saved?)
    }

    /// Removes the record of an attachment; none is no error.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove(&self, key: &Key) -> Result<(), StoreError> {
        Ok(saved::save::<Record>(&self.path(key), None)?)
    }

    /// All records, and what is wrong with those that cannot be read.
    ///
    /// # Errors
    /// The folder cannot be read. That it is not there is no error.
    pub fn all(&self) -> Result<(Vec<Record>, Vec<StoreError>), StoreError> {
        let (mut records, mut wrong) = (Vec::new(), Vec::new());
        for file in self.files()? {
            match self.open(&file) {
                Ok(record) => records.extend(record),
                Err(e) => wrong.push(e),
            }
        }
        records.sort_by(|a, b| a.key.cmp(&b.key));
        Ok((records, wrong))
    }

    /// The files of the records, as they are now: one that is replaced is another.
    ///
    /// # Errors
    /// The folder cannot be read. That it is not there is no error.
    pub fn files(&self) -> Result<BTreeSet<RecordFile>, StoreError> {
        let failed = |source| StoreError::Folder { path: self.folder.clone(), source };
        let entries = match std::fs::read_dir(&self.folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
            entries => entries.map_err(failed)?,
        };
        let mut files = BTreeSet::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let path = entry.path();
            if path.extension().is_some_and(|e| e == "json")
                && let Ok(meta) = entry.metadata()
            {
                let changed = (meta.mtime(), meta.mtime_nsec());
                files.insert(RecordFile { path, inode: meta.ino(), changed });
            }
        }
        Ok(files)
    }

    /// Reads one of [`Store::files`]; `None` when it is gone by now.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn open(&self, file: &RecordFile) -> Result<Option<Record>, StoreError> {
        load(&file.path)
    }
}

/// A record's file at one time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordFile {
    path: PathBuf,
    inode: u64,
    changed: (i64, i64),
}

impl RecordFile {
    /// The device that the file's name says it is of.
    #[must_use]
    pub fn device(&self) -> Option<&str> {
        device_of(&self.path)
    }
}

/// The device that a file's name says it is of.
fn device_of(path: &Path) -> Option<&str> {
    path.file_stem()?.to_str()
}

fn load(path: &Path) -> Result<Option<Record>, StoreError> {
    let wrong = |why: String| StoreError::Wrong { path: path.to_owned(), why };
    match saved::load_for_boot::<Record>(path) {
        Ok(Some(r)) if r.version != VERSION => {
            Err(wrong(format!("its version is {}, this program's is {VERSION}", r.version)))
        }
        Ok(Some(r)) if r.device != r.key.device() => {
            Err(wrong(format!("{} is not the device of {}", r.device, r.key)))
        }
        // What the file holds, and not that it cannot be read.
        Err(crate::netdev::Error::Record { source, .. }) if source.kind() == io::ErrorKind::InvalidData => {
            Err(wrong(source.to_string()))
        }
        record => Ok(record?),
    }
}

/// What goes wrong with records.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] crate::netdev::Error),
    /// The folder cannot be read or made.
    #[error("{}: {source}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{}: {why}", path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A file is another attachment's, whose device has the same name.
    #[error("{}: {device} is also the name for {other}", path.display())]
    Taken {
        /// The file.
        path: PathBuf,
        /// The device.
        device: String,
        /// Whose it is.
        other: Box<Key>,
    },
}

impl StoreError {
    /// The device of the attachment that a file is of, where it is a file and its name says one that is ours.
    #[must_use]
    pub fn device(&self) -> Option<&str> {
        let path = match self {
            Self::Wrong { path, .. } | Self::Taken { path, .. } => path,
            Self::File(crate::netdev::Error::Record { path, .. }) => path,
            Self::File(_) | Self::Folder { .. } => return None,
        };
        device_of(path).filter(|name| is_our_device(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn key(container: &str) -> Key {
        Key { container: container.to_owned(), ifname: "eth0".to_owned() }
    }

    fn record(container: &str) -> Record {
        let pod = PodRef { namespace: "shop".to_owned(), name: "web".to_owned(), uid: None };
        let addresses = vec!["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        let (network, netns) = ("pods".to_owned(), PathBuf::from("/run/netns/x"));
        Record::new(key(container), NewRecord { network, netns, pod, addresses, ipam: None })
    }

    #[test]
    fn names_stay_what_they_are() {
        // A change here loses the veths of pods that run.
        let k = key("0123456789abcdef");
        assert_eq!(k.device(), "fpcdcbce67140b9");
        assert_eq!(k.mac(true).to_string(), "02:9a:5f:06:65:17");
        assert!(is_our_device(&k.device()));
        for name in ["fpc", "fpc0123456789AB", "fpc0123456789abc", "eth0", "fp-a1"] {
            assert!(!is_our_device(name), "{name}");
        }
        let other = Key { ifname: "eth1".to_owned(), ..k.clone() };
        assert_ne!((k.device(), k.mac(true)), (other.device(), other.mac(true)));
        assert_ne!(k.mac(true), k.mac(false));
    }

    #[test]
    fn names_of_many_differ() {
        let names: std::collections::BTreeSet<String> =
            (0..20_000).map(|i| key(&format!("c{i}")).device()).collect();
        assert_eq!(names.len(), 20_000);
        let macs: std::collections::BTreeSet<[u8; 6]> =
            (0..20_000).map(|i| key(&format!("c{i}")).mac(true).0).collect();
        assert_eq!(macs.len(), 20_000);
    }

    #[test]
    fn records_are_kept_one_by_one() {
        let dir = std::env::temp_dir().join(format!("fp-records-{}", std::process::id()));
        let store = Store::of(&dir);
        assert!(store.read(&key("a")).unwrap().is_none());
        assert_eq!(store.all().unwrap().0, []);
        store.remove(&key("a")).unwrap();
        let (a, b) = (record("a"), record("b"));
        store.write(&a).unwrap();
        store.write(&b).unwrap();
        assert_eq!(store.read(&key("a")).unwrap(), Some(a.clone()));
        assert_eq!(store.all().unwrap().0, [a.clone(), b.clone()]);
        // What a killed plugin left half written is no record.
        let folder = dir.join("endpoints");
        std::fs::write(folder.join("fpc000000000000.json.new"), "{").unwrap();
        assert_eq!(store.all().unwrap().0.len(), 2);
        // A power loss left half of one: no pod has survived it.
        std::fs::write(folder.join("fpc000000000002.json"), "{").unwrap();
        // A file that is wrong costs only itself.
        std::fs::write(folder.join("fpc000000000000.json"), "{}").unwrap();
        let mut moved = a.clone();
        moved.device = "eth0".to_owned();
        std::fs::write(folder.join("fpc000000000001.json"), serde_json::to_vec(&moved).unwrap()).unwrap();
        let (good, wrong) = store.all().unwrap();
        assert_eq!((good, wrong.len()), (vec![a.clone(), b.clone()], 2));
        store.remove(&key("a")).unwrap();
        assert_eq!(store.read(&key("a")).unwrap(), None);
        assert_eq!(store.all().unwrap().0, [b]);
        // For taking down: no record, or one of a newer version, is none; what cannot be read, or is another's, is not.
        let (path, mut newer) = (store.path(&a.key), serde_json::to_value(&a).unwrap());
        newer["version"] = 2.into();
        for text in ["{}".to_owned(), "[]".to_owned(), newer.to_string()] {
            std::fs::write(&path, text).unwrap();
            assert!(matches!(store.read(&a.key), Err(StoreError::Wrong { .. })));
            assert_eq!(store.read_if_any(&a.key).unwrap(), None);
        }
        newer["container"] = "other".into();
        std::fs::write(&path, newer.to_string()).unwrap();
        assert!(matches!(store.read_if_any(&a.key), Err(StoreError::Taken { .. })));
        assert!(!store.remove_wrong(&path, "another").unwrap() && path.exists());
        assert!(store.remove_wrong(&path, "pods").unwrap() && !path.exists());
        std::fs::create_dir(&path).unwrap();
        let e = store.read_if_any(&a.key).unwrap_err();
        assert!(matches!(e, StoreError::File(_)) && e.device() == Some(&a.device), "{e:?}");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
