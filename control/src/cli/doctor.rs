//! `fastpath doctor`, `fastpath install-cni`.
#![forbid(unsafe_code)]

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use super::args::Output;
use super::table::clean;
use super::{FAILED, Failure, json};
use crate::config::Config;
use crate::doctor::{Facts, Finding, Level, examine, worst};
use crate::install::{Places, before, install, remove};

/// Only warnings were found.
const WARNED: u8 = 4;

/// What `fastpath doctor --help` ends with.
pub(super) const DOCTOR: &str = "\
Run it on the node, as the daemon will run (the same user, capabilities, cpuset), before switching the node over, and
whenever something is odd. Nothing is changed. Each line begins with ✔ (good), ! (it works, but worse than it could, or
it could not be found out) or ✘ (it does not work like that), and says what to do where it is not good.
Exit code 0 when all is good, 4 when there are warnings, 1 when something is wrong.";

/// What `fastpath install-cni --help` ends with.
pub(super) const INSTALL: &str = "\
Copies this program as fastpath-cni, and last of all the configuration, by which the container runtime begins to call it.
Both are replaced at one stroke. --remove takes both away, the configuration first: pods that run are not touched, new
ones are the next plugin's by name. A warning names the configurations that come before ours: runtimes take the first by
name.";

#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// Configuration file; without one, the defaults.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct InstallArgs {
    /// Folder of CNI plugins.
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    bin_dir: PathBuf,
    /// Folder of CNI configurations.
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    conf_dir: PathBuf,
    /// The configuration to install, under its name.
    #[arg(long, value_name = "FILE", default_value = "/etc/fastpath/10-fastpath.conflist")]
    conflist: PathBuf,
    /// Remove both instead.
    #[arg(long)]
    remove: bool,
}

/// Examines this node.
pub(super) fn doctor(args: &DoctorArgs, output: Output, out: &mut impl Write) -> Result<(), Failure> {
    let config = match &args.config {
        Some(file) => Config::load(file).map_err(|e| Failure::Message(FAILED, e.to_string()))?,
        None => Config::default(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let facts = runtime.block_on(Facts::gather(&config));
    let findings = examine(&facts, &config);
    match output {
        Output::Json => json(out, &findings)?,
        Output::Table => out.write_all(lines(&findings).as_bytes())?,
    }
    match worst(&findings) {
        Level::Ok => Ok(()),
        Level::Warning => Err(Failure::Said(WARNED)),
        Level::Error => Err(Failure::Said(FAILED)),
    }
}

/// A line for each finding, and one for each remedy.
fn lines(findings: &[Finding]) -> String {
    let width = findings.iter().map(|f| f.check.len()).max().unwrap_or(0);
    let mut text = String::new();
    for Finding { check, level, found, remedy } in findings {
        text.push_str(&format!("{} {check:width$}   {}\n", level.mark(), clean(found)));
        if let Some(remedy) = remedy {
            text.push_str(&format!("  {:width$}   → {}\n", "", clean(remedy)));
        }
    }
    text
}

/// Installs the CNI plugin, or removes it.
pub(super) fn install_cni(args: &InstallArgs, out: &mut impl Write) -> Result<(), Failure> {
    let places = Places {
        // The very program that runs, also when its file was replaced meanwhile.
        binary: PathBuf::from("/proc/self/exe"),
        bin_dir: args.bin_dir.clone(),
        conflist: args.conflist.clone(),
        conf_dir: args.conf_dir.clone(),
    };
    let failed = |e: crate::install::InstallError| Failure::Message(FAILED, e.to_string());
    if args.remove {
        return remove(&places).map_err(failed);
    }
    for file in install(&places).map_err(failed)? {
        writeln!(out, "{}", file.display())?;
    }
    let warning = match before(&places.conf_dir, &places.conflist) {
        Ok(names) if names.is_empty() => return Ok(()),
        Ok(names) => format!(
            "{} come first by name, and the runtime takes the first: move them away when switching over",
            names.join(", ")
        ),
        Err(e) => format!("whether another configuration comes first cannot be seen: {e}"),
    };
    // Nobody to tell when stderr is closed.
    let _ =
        writeln!(std::io::stderr(), "fastpath: warning: {}: {}", places.conf_dir.display(), clean(&warning));
    Ok(())
}
