//! Whether systemd-networkd removes routing rules that it did not make.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::{Facts, Findings};
use crate::config::Config;

/// Where its configuration lies, what counts most first.
const FOLDERS: [&str; 4] = ["etc", "run", "usr/local/lib", "usr/lib"];
const FILE: &str = "systemd/networkd.conf";
const KEY: &str = "ManageForeignRoutingPolicyRules";
/// Its name in the process table, which the kernel cuts to 15 bytes.
const PROCESS: &str = "systemd-network";

pub(super) fn check(facts: &Facts, config: &Config, out: &mut Findings) {
    match facts.networkd {
        None => out.ok("does not run, as far as can be seen"),
        Some(false) => out.ok("runs, and leaves others' routing rules alone"),
        Some(true) if !config.host.enabled => out.ok("removes others' routing rules; host.enabled = false makes none"),
        Some(true) => out.warning(
            "removes others' routing rules when it starts or its configuration changes: the daemon puts its own back, but \
             until then the node's processes do not reach pods and services",
            format!(
                "{KEY}=no in the section [Network] of /etc/systemd/networkd.conf.d/10-fastpath.conf, then systemctl restart \
                 systemd-networkd"
            ),
        ),
    }
}

/// Whether it removes others' rules; `None` when it does not run.
pub(super) fn ask() -> Option<bool> {
    runs(Path::new("/proc")).then(|| manages_rules(Path::new("/")))
}

fn runs(proc: &Path) -> bool {
    let Ok(entries) = fs::read_dir(proc) else { return false };
    let is_it =
        |e: fs::DirEntry| fs::read_to_string(e.path().join("comm")).is_ok_and(|n| n.trim_end() == PROCESS);
    entries.flatten().any(is_it)
}

/// What the files say (networkd.conf(5)): drop-ins by name after the file itself, each the first of its name by folder.
fn manages_rules(root: &Path) -> bool {
    let places = || FOLDERS.iter().map(|f| root.join(f).join(FILE));
    let main = places().find(|p| p.exists());
    let mut drop_ins: BTreeMap<std::ffi::OsString, PathBuf> = BTreeMap::new();
    for place in places() {
        let Ok(entries) = fs::read_dir(place.with_extension("conf.d")) else { continue };
        for entry in entries.flatten().filter(|e| e.path().extension().is_some_and(|x| x == "conf")) {
            drop_ins.entry(entry.file_name()).or_insert_with(|| entry.path());
        }
    }
    let files = main.into_iter().chain(drop_ins.into_values());
    let texts = files.filter_map(|p| fs::read_to_string(p).ok());
    // It does unless told otherwise.
    texts.filter_map(|text| setting(&text)).next_back().unwrap_or(true)
}

/// The last valid value in a file.
fn setting(text: &str) -> Option<bool> {
    let mut section = "";
    let mut value = None;
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
        } else if let Some((key, v)) = line.split_once('=')
            && section == "Network"
            && key.trim_end() == KEY
        {
            value = match v.trim().to_ascii_lowercase().as_str() {
                "1" | "yes" | "y" | "true" | "t" | "on" => Some(true),
                "0" | "no" | "n" | "false" | "f" | "off" => Some(false),
                _ => value,
            };
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_a_file() {
        for (text, want) in [
            ("", None),
            ("[Network]\n#ManageForeignRoutingPolicyRules=yes\n", None),
            ("[Network]\nManageForeignRoutingPolicyRules=no\n", Some(false)),
            ("[Network]\n ManageForeignRoutingPolicyRules = Off \n", Some(false)),
            ("[DHCPv4]\nManageForeignRoutingPolicyRules=no\n", None),
            (
                "[Network]\nManageForeignRoutingPolicyRules=no\nManageForeignRoutingPolicyRules=true\n",
                Some(true),
            ),
            (
                "[Network]\nManageForeignRoutingPolicyRules=no\nManageForeignRoutingPolicyRules=odd",
                Some(false),
            ),
            ("[Network]\nManageForeignRoutes=no\n", None),
        ] {
            assert_eq!(setting(text), want, "{text}");
        }
    }

    #[test]
    fn files_by_their_order() {
        let root = std::env::temp_dir().join(format!("fastpath-networkd-{}", std::process::id()));
        let write = |path: &str, value: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("[Network]\n{KEY}={value}\n")).unwrap();
        };
        assert!(manages_rules(&root));
        write("usr/lib/systemd/networkd.conf", "no");
        assert!(!manages_rules(&root));
        write("etc/systemd/networkd.conf", "yes");
        assert!(manages_rules(&root));
        write("usr/lib/systemd/networkd.conf.d/50-a.conf", "no");
        assert!(!manages_rules(&root));
        write("etc/systemd/networkd.conf.d/50-a.conf", "yes");
        assert!(manages_rules(&root));
        write("run/systemd/networkd.conf.d/60-b.conf", "no");
        write("etc/systemd/networkd.conf.d/70-c.conf.bak", "yes");
        assert!(!manages_rules(&root));
        // The process table is read the same way.
        assert!(!runs(&root));
        fs::create_dir_all(root.join("17")).unwrap();
        fs::write(root.join("17/comm"), "systemd-network\n").unwrap();
        assert!(runs(&root));
        fs::remove_dir_all(&root).unwrap();
    }
}
