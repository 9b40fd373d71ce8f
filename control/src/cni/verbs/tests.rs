use std::cell::Cell;

use super::*;

/// A data folder, removed in the end.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("fp-verbs-{test}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(dir.join("endpoints")).unwrap();
        Self(dir)
    }

    fn conf(&self) -> Conf {
        let text = json!({
            "cniVersion": "1.1.0", "name": "pods", "type": "fastpath-cni",
            "state_dir": self.0.join("no-daemon"), "data_dir": self.0,
        });
        Conf::parse(text.to_string().as_bytes()).unwrap()
    }

    /// Where a record of `key` is.
    fn file(&self, key: &Key) -> PathBuf {
        self.0.join("endpoints").join(format!("{}.json", key.device()))
    }

    /// Has `path` written no more, as on a full disk; it can still be removed.
    fn fill(&self, path: &Path) {
        std::fs::create_dir(path.with_extension("json.new")).unwrap();
    }

    fn held(&self) -> usize {
        Ipam::of(&self.0).read().unwrap().taken().count()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn key(container: &str) -> Key {
    Key { container: container.to_owned(), ifname: "eth0".to_owned() }
}

/// An attachment with a record and two addresses.
fn attached(call: &Call<'_>, key: &Key, ipam: Option<&str>) -> Record {
    let cidrs = ["10.0.0.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()];
    let addresses =
        Ipam::of(&call.conf.data_dir).allocate(&call.owner(key), &cidrs, &BTreeSet::new()).unwrap();
    let pod = PodRef { namespace: "shop".to_owned(), name: "web".to_owned(), uid: None };
    let (network, netns) = (call.conf.name.clone(), PathBuf::from("/run/netns/x"));
    let new = NewRecord { network, netns, pod, addresses, ipam: ipam.map(str::to_owned) };
    let record = Record::new(key.clone(), new);
    call.store().write(&record).unwrap();
    record
}

/// Takes it down; says whether the device was asked to go, and whether a record stood without the mark then.
fn take_down(call: &Call<'_>, key: &Key, record: Option<Record>) -> (Result<(), Error>, bool, bool) {
    let (deleted, served) = (Cell::new(false), Cell::new(false));
    let result = call.take_down_by(key, record, |device| {
        assert_eq!(device, key.device());
        deleted.set(true);
        served.set(call.store().read(key).ok().flatten().is_some_and(|r| !r.deleting));
        Ok(())
    });
    (result, deleted.get(), served.get())
}

#[test]
fn a_full_disk_keeps_no_attachment() {
    let dir = Folder::new("full");
    let (env, conf) = (Env::from_iter([]), dir.conf());
    let call = Call { env: &env, conf: &conf };
    let key = key("a");
    let record = attached(&call, &key, None);
    assert_eq!(dir.held(), 2);
    dir.fill(&dir.file(&key));
    let addresses = dir.0.join("ipam.json");
    dir.fill(&addresses);
    // The device goes, and with the record the daemon's reason to serve it; the addresses cannot be given back yet.
    let (result, deleted, served) = take_down(&call, &key, Some(record));
    assert_eq!(result.unwrap_err().code, Code::Io as u32);
    assert!(deleted && !served);
    assert!(!dir.file(&key).exists());
    assert_eq!(dir.held(), 2);
    // There is room again: the next DEL has nothing but the key.
    std::fs::remove_dir(addresses.with_extension("json.new")).unwrap();
    let (result, deleted, _) = take_down(&call, &key, None);
    assert!(result.is_ok() && deleted);
    assert_eq!(dir.held(), 0);
}

/// Room for none but the addresses: all is well.
#[test]
fn a_mark_that_cannot_be_written_is_no_error() {
    let dir = Folder::new("mark");
    let (env, conf) = (Env::from_iter([]), dir.conf());
    let call = Call { env: &env, conf: &conf };
    let key = key("a");
    let record = attached(&call, &key, None);
    dir.fill(&dir.file(&key));
    let (result, deleted, served) = take_down(&call, &key, Some(record));
    assert!(result.is_ok() && deleted && !served, "{result:?}");
    assert!(!dir.file(&key).exists());
    assert_eq!(dir.held(), 0);
}

/// What another plugin gave out, only the record tells: it stays until that plugin has it back.
#[test]
fn the_record_of_anothers_addresses_outlives_the_mark() {
    let dir = Folder::new("delegated");
    let (env, conf) = (Env::from_iter([("CNI_PATH".to_owned(), dir.0.display().to_string())]), dir.conf());
    let call = Call { env: &env, conf: &conf };
    let key = key("a");
    let record = attached(&call, &key, Some("no-such-plugin"));
    dir.fill(&dir.file(&key));
    let (result, deleted, _) = take_down(&call, &key, Some(record));
    assert!(result.is_err() && deleted);
    assert!(dir.file(&key).exists());
}

/// What was written before the disk was full is taken away again.
#[test]
fn half_a_file_is_not_left() {
    let dir = Folder::new("half");
    let path = dir.0.join("x.json");
    std::fs::create_dir(&path).unwrap();
    crate::netdev::saved::save_for_boot(&path, Some(&1)).unwrap_err();
    assert!(!path.with_extension("json.new").exists());
}

/// A record of another version, or none at all under its name, hinders neither DEL nor what comes after it.
#[test]
fn a_record_that_makes_no_sense_is_taken_down() {
    let dir = Folder::new("wrong");
    let (env, conf) = (Env::from_iter([]), dir.conf());
    let call = Call { env: &env, conf: &conf };
    let key = key("a");
    let record = attached(&call, &key, None);
    let mut newer = serde_json::to_value(&record).unwrap();
    newer["version"] = 99.into();
    for text in ["{}".to_owned(), newer.to_string()] {
        attached(&call, &key, None);
        std::fs::write(dir.file(&key), text).unwrap();
        let left = call.leftover(&key).unwrap();
        let (result, deleted, _) = take_down(&call, &key, left);
        assert!(result.is_ok() && deleted, "{result:?}");
        assert!(!dir.file(&key).exists());
        assert_eq!(dir.held(), 0);
    }
}
