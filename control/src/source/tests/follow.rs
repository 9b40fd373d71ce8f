//! A folder followed: every way files change, and what stays in force when they are wrong.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::super::{DirectorySource, Update};
use super::{Folder, pod};

/// Waits until the newest update satisfies `wanted`. The long limit is only for failing at all.
fn wait(
    updates: &mut watch::Receiver<Arc<Update>>,
    what: &str,
    wanted: impl FnMut(&Arc<Update>) -> bool,
) -> Arc<Update> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("runtime");
    runtime.block_on(async {
        match tokio::time::timeout(Duration::from_secs(30), updates.wait_for(wanted)).await {
            Ok(seen) => seen.expect("source runs").clone(),
            Err(_) => panic!("{what}: not seen"),
        }
    })
}

fn names(u: &Update) -> Vec<String> {
    u.model
        .pods
        .values()
        .map(|p| {
            format!(
                "{}={}",
                p.name.name,
                p.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join("+")
            )
        })
        .collect()
}

struct Followed {
    updates: watch::Receiver<Arc<Update>>,
    _source: DirectorySource,
}

impl Followed {
    fn new(path: &Path) -> Self {
        let source = DirectorySource::start(path).expect("inotify");
        Self { updates: source.updates(), _source: source }
    }

    /// Waits for exactly these pods and this many problems.
    fn expect(&mut self, what: &str, pods: &[&str], problems: usize) -> Arc<Update> {
        wait(&mut self.updates, what, |u| names(u) == pods && u.problems.len() == problems)
    }
}

#[test]
fn files_written_renamed_linked_and_deleted() {
    let dir = Folder::new();
    dir.write("a.yaml", &pod("a", "10.0.0.1"));
    let mut f = Followed::new(dir.path());
    f.expect("first reading", &["a=10.0.0.1"], 0);
    dir.write("b.yaml", &pod("b", "10.0.0.2"));
    f.expect("new file", &["a=10.0.0.1", "b=10.0.0.2"], 0);
    dir.write("b.yaml", &pod("b", "10.0.0.3"));
    f.expect("written over", &["a=10.0.0.1", "b=10.0.0.3"], 0);
    // As editors save: a new file renamed into place, the old one kept as backup.
    dir.write("b.yaml.tmp", &pod("b", "10.0.0.4"));
    fs::rename(dir.path().join("b.yaml"), dir.path().join("b.yaml~")).expect("rename");
    fs::rename(dir.path().join("b.yaml.tmp"), dir.path().join("b.yaml")).expect("rename");
    f.expect("renamed into place", &["a=10.0.0.1", "b=10.0.0.4"], 0);
    fs::rename(dir.path().join("b.yaml"), dir.path().join("c.yml")).expect("rename");
    let moved = f.expect("renamed", &["a=10.0.0.1", "b=10.0.0.4"], 0);
    assert_eq!(moved.model.pods.len(), 2);
    fs::hard_link(dir.path().join("a.yaml"), dir.path().join("hard.yaml")).expect("link");
    f.expect("hard link doubles the object", &["a=10.0.0.1", "b=10.0.0.4"], 1);
    dir.remove("hard.yaml");
    f.expect("hard link gone", &["a=10.0.0.1", "b=10.0.0.4"], 0);
    dir.remove("a.yaml");
    f.expect("deleted", &["b=10.0.0.4"], 0);
}

#[test]
fn a_file_being_written_is_not_read_in_halves() {
    use std::io::Write;
    let dir = Folder::new();
    dir.write("a.yaml", &pod("a", "10.0.0.1"));
    let mut f = Followed::new(dir.path());
    f.expect("first reading", &["a=10.0.0.1"], 0);
    f.updates.mark_unchanged();
    let (one, two) = (pod("a", "10.0.0.9"), pod("b", "10.0.0.2"));
    let mut file = fs::File::create(dir.path().join("a.yaml")).expect("create");
    file.write_all(b"apiVersion: v1\nkind: [").expect("half");
    // Another file's change must be seen meanwhile, with the last state of the one being written.
    dir.write("b.yaml", &two);
    let seen = wait(&mut f.updates, "other file", |u| u.model.pods.len() == 2 || !u.problems.is_empty());
    assert_eq!(
        (names(&seen), seen.problems.len()),
        (vec!["a=10.0.0.1".to_owned(), "b=10.0.0.2".to_owned()], 0)
    );
    file.set_len(0).expect("truncate");
    std::io::Seek::rewind(&mut file).expect("rewind");
    file.write_all(one.as_bytes()).expect("whole");
    drop(file);
    f.expect("closed", &["a=10.0.0.9", "b=10.0.0.2"], 0);
}

#[test]
fn a_writer_that_never_closes_is_read_in_the_end() {
    use std::io::Write;
    let dir = Folder::new();
    let mut f = Followed::new(dir.path());
    let mut file = fs::File::create(dir.path().join("a.yaml")).expect("create");
    file.write_all(pod("a", "10.0.0.1").as_bytes()).expect("write");
    f.expect("held open", &["a=10.0.0.1"], 0);
    drop(file);
}

#[test]
fn a_bad_document_leaves_its_last_state_in_force() {
    let dir = Folder::new();
    let two = |a: &str, b: &str| format!("{a}---\n{b}");
    dir.write("x.yaml", &two(&pod("a", "10.0.0.1"), &pod("b", "10.0.0.2")));
    let mut f = Followed::new(dir.path());
    f.expect("first reading", &["a=10.0.0.1", "b=10.0.0.2"], 0);
    // A wrong value in one document; the other's change is in force.
    dir.write("x.yaml", &two(&pod("a", "10.0.0.999"), &pod("b", "10.0.0.3")));
    let bad = f.expect("wrong value", &["a=10.0.0.1", "b=10.0.0.3"], 1);
    assert!(
        bad.problems[0]
            .to_string()
            .ends_with("x.yaml:9: status.podIP: \"10.0.0.999\" is not an IPv4 or IPv6 address")
    );
    // No telling which object the broken text was.
    dir.write("x.yaml", &two("a: [\n", &pod("b", "10.0.0.4")));
    f.expect("broken syntax", &["a=10.0.0.1", "b=10.0.0.4"], 1);
    // Still broken, and other files come and go.
    dir.write("y.yaml", &pod("c", "10.0.0.5"));
    f.expect("another file", &["a=10.0.0.1", "b=10.0.0.4", "c=10.0.0.5"], 1);
    // A second claim to an object does not replace the first, whichever file comes first.
    dir.write("0.yaml", &pod("c", "10.0.0.6"));
    f.expect("duplicate", &["a=10.0.0.1", "b=10.0.0.4", "c=10.0.0.5"], 2);
    dir.remove("0.yaml");
    dir.write("x.yaml", &pod("b", "10.0.0.4"));
    f.expect("mended without a", &["b=10.0.0.4", "c=10.0.0.5"], 0);
    dir.write("y.yaml", &pod("c", "nonsense"));
    f.expect("wrong", &["b=10.0.0.4", "c=10.0.0.5"], 1);
    dir.remove("y.yaml");
    f.expect("deleted with its problem", &["b=10.0.0.4"], 0);
}

#[test]
fn config_map_mounts_swap_atomically() {
    let dir = Folder::new();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("..v1")).expect("mkdir");
    fs::write(at("..v1").join("a.yaml"), pod("a", "10.0.0.1")).expect("write");
    symlink("..v1", at("..data")).expect("symlink");
    symlink("..data/a.yaml", at("a.yaml")).expect("symlink");
    let mut f = Followed::new(dir.path());
    f.expect("first reading", &["a=10.0.0.1"], 0);
    fs::create_dir(at("..v2")).expect("mkdir");
    fs::write(at("..v2").join("a.yaml"), pod("a", "10.0.0.2")).expect("write");
    symlink("..v2", at("..data_tmp")).expect("symlink");
    fs::rename(at("..data_tmp"), at("..data")).expect("swap");
    f.expect("swapped", &["a=10.0.0.2"], 0);
    fs::remove_dir_all(at("..v1")).expect("clean up");
    // A file behind a link that leads out of the folder, changed in place: inotify says nothing.
    let other = Folder::new();
    other.write("b.yaml", &pod("b", "10.0.0.3"));
    symlink(other.path().join("b.yaml"), at("b.yaml")).expect("symlink");
    f.expect("link out", &["a=10.0.0.2", "b=10.0.0.3"], 0);
    other.write("b.yaml", &pod("b", "10.0.0.44"));
    f.expect("changed behind the link", &["a=10.0.0.2", "b=10.0.0.44"], 0);
}

#[test]
fn the_folder_itself_comes_goes_and_is_replaced() {
    let top = Folder::new();
    let path = top.path().join("manifests");
    let mut f = Followed::new(&path);
    let none = f.expect("no folder yet", &[], 1);
    assert!(
        none.problems[0].to_string().contains("manifests: cannot be read: No such file"),
        "{:?}",
        none.problems
    );
    fs::create_dir(&path).expect("mkdir");
    fs::write(path.join("a.yaml"), pod("a", "10.0.0.1")).expect("write");
    f.expect("made", &["a=10.0.0.1"], 0);
    // Moved away whole: what it held stays in force.
    fs::rename(&path, top.path().join("old")).expect("rename");
    let gone = f.expect("gone", &["a=10.0.0.1"], 1);
    assert!(
        gone.problems[0].to_string().ends_with("what it held last stays in force"),
        "{:?}",
        gone.problems
    );
    fs::create_dir(&path).expect("mkdir");
    fs::write(path.join("b.yaml"), pod("b", "10.0.0.2")).expect("write");
    f.expect("another one in its place", &["b=10.0.0.2"], 0);
    // The old one is not looked at any more, the new one is.
    fs::write(top.path().join("old/c.yaml"), pod("c", "10.0.0.3")).expect("write");
    fs::write(path.join("d.yaml"), pod("d", "10.0.0.4")).expect("write");
    f.expect("followed on", &["b=10.0.0.2", "d=10.0.0.4"], 0);
    // A link to a folder, pointed elsewhere.
    let link = top.path().join("link");
    symlink("manifests", &link).expect("symlink");
    let mut l = Followed::new(&link);
    l.expect("through a link", &["b=10.0.0.2", "d=10.0.0.4"], 0);
    symlink("old", top.path().join("link2")).expect("symlink");
    fs::rename(top.path().join("link2"), &link).expect("swap");
    l.expect("link swapped", &["a=10.0.0.1", "c=10.0.0.3"], 0);
    fs::write(top.path().join("old/e.yaml"), pod("e", "10.0.0.5")).expect("write");
    l.expect("followed behind the link", &["a=10.0.0.1", "c=10.0.0.3", "e=10.0.0.5"], 0);
}

#[test]
fn what_did_not_change_is_the_same_object() {
    let dir = Folder::new();
    dir.write("a.yaml", &pod("a", "10.0.0.1"));
    dir.write("b.yaml", &pod("b", "10.0.0.2"));
    let mut f = Followed::new(dir.path());
    let before = f.expect("first reading", &["a=10.0.0.1", "b=10.0.0.2"], 0);
    dir.write("b.yaml", &pod("b", "10.0.0.3"));
    let after = f.expect("changed", &["a=10.0.0.1", "b=10.0.0.3"], 0);
    let a = before.model.pods.keys().next().expect("a");
    assert!(Arc::ptr_eq(&before.model.pods[a], &after.model.pods[a]));
    // A problem alone does not make a new model.
    dir.write("c.yaml", "a: [");
    let worse = f.expect("problem", &["a=10.0.0.1", "b=10.0.0.3"], 1);
    assert!(Arc::ptr_eq(&after.model, &worse.model));
}
