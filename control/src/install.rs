//! `fastpath install-cni`: puts the CNI plugin and its configuration where a node's container runtime looks for them.
//!
//! Both are replaced at one stroke (written beside, then renamed), so that a runtime never starts half a binary or reads half
//! a file. The configuration comes last, for with it the runtime begins to call the plugin; it goes first when both are removed.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// Name of the plugin's binary; the binary takes it from its own name what it is to do.
pub const PLUGIN: &str = "fastpath-cni";

/// Largest configuration taken, in bytes.
const MAX_CONFLIST: u64 = 1 << 20;

/// What goes where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// The binary to copy: this program.
    pub binary: PathBuf,
    /// Folder of plugins.
    pub bin_dir: PathBuf,
    /// Configuration to copy, under its name.
    pub conflist: PathBuf,
    /// Folder of configurations.
    pub conf_dir: PathBuf,
}

/// Why it could not be installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A file cannot be read or written.
    #[error("cannot {what} {}: {source}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The configuration is none.
    #[error("{}: {reason}", path.display())]
    Conflist {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl InstallError {
    fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { what, path, source }
    }
}

/// Installs the plugin, then its configuration. Returns the files written.
///
/// # Errors
/// [`InstallError`]; the configuration is checked before anything is written.
pub fn install(places: &Places) -> Result<[PathBuf; 2], InstallError> {
    let (name, conflist) = read_conflist(&places.conflist)?;
    let binary = places.bin_dir.join(PLUGIN);
    let mut from = File::open(&places.binary).map_err(InstallError::file("read", &places.binary))?;
    replace(&binary, 0o755, |to| io::copy(&mut from, to).map(drop))?;
    let config = places.conf_dir.join(name);
    replace(&config, 0o644, |to| to.write_all(&conflist))?;
    Ok([binary, config])
}

/// The configurations in force before one of this name: runtimes take the first by name.
///
/// # Errors
/// The folder cannot be read.
pub fn before(conf_dir: &Path, conflist: &Path) -> io::Result<Vec<String>> {
    let name = conflist.file_name().unwrap_or_default().to_string_lossy();
    Ok(configurations(conf_dir)?.into_iter().filter(|other| **other < *name).collect())
}

/// What libcni takes for a configuration, in its order.
///
/// # Errors
/// The folder cannot be read.
pub fn configurations(conf_dir: &Path) -> io::Result<Vec<String>> {
    let is_one = |n: &String| {
        Path::new(n).extension().is_some_and(|e| ["conf", "conflist", "json"].iter().any(|known| e == *known))
    };
    let mut names = Vec::new();
    for entry in fs::read_dir(conf_dir)? {
        names.extend(entry?.file_name().into_string().ok().filter(is_one));
    }
    names.sort();
    Ok(names)
}

/// Removes the configuration, then the plugin; what is not there is well.
///
/// # Errors
/// [`InstallError::File`].
pub fn remove(places: &Places) -> Result<(), InstallError> {
    let name = places.conflist.file_name().unwrap_or_default();
    for path in [places.conf_dir.join(name), places.bin_dir.join(PLUGIN)] {
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(InstallError::file("remove", &path)(e));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Name and content of a CNI network configuration list with our plugin in it.
fn read_conflist(path: &Path) -> Result<(&std::ffi::OsStr, Vec<u8>), InstallError> {
    let wrong = |reason: String| InstallError::Conflist { path: path.to_owned(), reason };
    let name = path.file_name().ok_or_else(|| wrong("is no file".to_owned()))?;
    if path.extension().is_none_or(|e| e != "conflist") {
        return Err(wrong("must be named *.conflist, for runtimes go by that".to_owned()));
    }
    let meta = fs::metadata(path).map_err(InstallError::file("read", path))?;
    if meta.len() > MAX_CONFLIST {
        return Err(wrong(format!("is larger than {MAX_CONFLIST} bytes: no CNI configuration")));
    }
    let text = fs::read(path).map_err(InstallError::file("read", path))?;
    let json: serde_json::Value = serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))?;
    let plugins = json["plugins"].as_array().ok_or_else(|| wrong("has no list \"plugins\"".to_owned()))?;
    if !json["name"].is_string() || !json["cniVersion"].is_string() {
        return Err(wrong("lacks \"name\" or \"cniVersion\"".to_owned()));
    }
    if !plugins.iter().any(|p| p["type"] == PLUGIN) {
        return Err(wrong(format!("no plugin in it is of type {PLUGIN:?}")));
    }
    Ok((name, text))
}

/// Writes a file beside `path`, on disk for good, and puts it in its place.
fn replace(
    path: &Path,
    mode: u32,
    fill: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<(), InstallError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // No name that a runtime reads, and the same each time: what a killed run left is written over.
    let beside = path.with_file_name(format!(".{name}.new"));
    let write = || {
        let _ = fs::remove_file(&beside);
        let mut file = File::options().write(true).create_new(true).open(&beside)?;
        fill(&mut file)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()
    };
    let written = write().map_err(InstallError::file("write", &beside));
    let placed = written.and_then(|()| fs::rename(&beside, path).map_err(InstallError::file("write", path)));
    if placed.is_err() {
        let _ = fs::remove_file(&beside);
    }
    placed
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> (Self, Places) {
            let root = std::env::temp_dir().join(format!("fastpath-install-{name}-{}", std::process::id()));
            for dir in ["bin", "conf"] {
                fs::create_dir_all(root.join(dir)).unwrap();
            }
            fs::write(root.join("fastpath"), "the program").unwrap();
            let conflist = root.join("10-fastpath.conflist");
            fs::write(&conflist, GOOD).unwrap();
            let places = Places {
                binary: root.join("fastpath"),
                bin_dir: root.join("bin"),
                conflist,
                conf_dir: root.join("conf"),
            };
            (Self(root), places)
        }

        fn files(&self) -> Vec<String> {
            let mut out = Vec::new();
            for dir in ["bin", "conf"] {
                for entry in fs::read_dir(self.0.join(dir)).unwrap() {
                    out.push(format!("{dir}/{}", entry.unwrap().file_name().to_string_lossy()));
                }
            }
            out.sort();
            out
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const GOOD: &str = r#"{"cniVersion":"1.1.0","name":"fastpath","plugins":[{"type":"fastpath-cni"}]}"#;

    #[test]
    fn installed_again_and_removed() {
        let (dir, places) = Dir::new("good");
        for _ in 0..2 {
            let [binary, config] = install(&places).unwrap();
            assert_eq!(dir.files(), ["bin/fastpath-cni", "conf/10-fastpath.conflist"]);
            assert_eq!(fs::read_to_string(&binary).unwrap(), "the program");
            assert_eq!(fs::read_to_string(&config).unwrap(), GOOD);
            assert_eq!(fs::metadata(&binary).unwrap().permissions().mode() & 0o777, 0o755);
            assert_eq!(fs::metadata(&config).unwrap().permissions().mode() & 0o777, 0o644);
            // What a killed run left is in nobody's way.
            fs::write(dir.0.join("bin/.fastpath-cni.new"), "half").unwrap();
        }
        install(&places).unwrap();
        remove(&places).unwrap();
        assert_eq!(dir.files(), [""; 0]);
        remove(&places).unwrap();
    }

    #[test]
    fn which_comes_first() {
        let (dir, places) = Dir::new("first");
        let [_, config] = install(&places).unwrap();
        assert_eq!(before(&places.conf_dir, &config).unwrap(), [""; 0]);
        for name in ["z.json", "10-calico.conflist", "05-b.conf", "05-c.conflist.bak", "README"] {
            fs::write(places.conf_dir.join(name), "").unwrap();
        }
        let all = ["05-b.conf", "10-calico.conflist", "10-fastpath.conflist", "z.json"];
        assert_eq!(configurations(&places.conf_dir).unwrap(), all);
        assert_eq!(before(&places.conf_dir, &config).unwrap(), all[..2]);
        // That it cannot be seen is not that there is none.
        assert!(configurations(&dir.0.join("nowhere")).is_err());
    }

    /// A program that runs stays as it is: its file is replaced, not written.
    #[test]
    fn the_running_plugin_is_not_disturbed() {
        let (_dir, places) = Dir::new("running");
        let [binary, _] = install(&places).unwrap();
        let open = File::open(&binary).unwrap();
        fs::write(&places.binary, "a newer one").unwrap();
        install(&places).unwrap();
        assert_eq!(io::read_to_string(open).unwrap(), "the program");
        assert_eq!(fs::read_to_string(&binary).unwrap(), "a newer one");
    }

    #[test]
    fn mistakes_write_nothing() {
        let (dir, places) = Dir::new("bad");
        for (text, part) in [
            ("{", "EOF while parsing"),
            (r#"{"cniVersion":"1.1.0","name":"x"}"#, "no list \"plugins\""),
            (r#"{"plugins":[{"type":"fastpath-cni"}]}"#, "lacks \"name\""),
            (r#"{"cniVersion":"1.1.0","name":"x","plugins":[{"type":"bridge"}]}"#, "no plugin in it"),
        ] {
            fs::write(&places.conflist, text).unwrap();
            let e = install(&places).unwrap_err().to_string();
            assert!(e.contains("10-fastpath.conflist") && e.contains(part), "{e}");
            assert_eq!(dir.files(), [""; 0]);
        }
        fs::write(&places.conflist, GOOD).unwrap();
        let named = Places { conflist: dir.0.join("x.json"), ..places.clone() };
        assert!(install(&named).unwrap_err().to_string().contains("*.conflist"));
        // Where the configuration cannot go, the plugin is there all the same, and nothing half.
        fs::remove_dir(dir.0.join("conf")).unwrap();
        assert!(install(&places).unwrap_err().to_string().contains("cannot write"));
        fs::create_dir(dir.0.join("conf")).unwrap();
        assert_eq!(dir.files(), ["bin/fastpath-cni"]);
    }
}
