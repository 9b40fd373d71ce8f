//! `fastpath doctor`: may this node be switched over?
//!
//! [`Facts`] are gathered from the kernel and the file system once; each of [`CHECKS`] looks at them and says what it found
//! and, where that is not good, what to do. Nothing is changed.
//!
//! To add a check: what it needs into [`Facts`], a function from facts to findings, a row in [`CHECKS`].
#![forbid(unsafe_code)]

use serde::Serialize;

mod api;
pub(crate) mod checks;
pub(crate) mod facts;
mod neighbours;
mod networkd;
#[cfg(test)]
mod tests;

pub use facts::{ApiFacts, Driver, Facts};

use crate::config::Config;

/// How good something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, but worse than it could, or it could not be found out.
    Warning,
    /// It does not work like that.
    Error,
}

impl Level {
    /// The mark in front of a line.
    #[must_use]
    pub fn mark(self) -> char {
        match self {
            Level::Ok => '✔',
            Level::Warning => '!',
            Level::Error => '✘',
        }
    }
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Name of the check.
    pub check: &'static str,
    /// How good it is.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What to do about it; `None` when it is as it should be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// One thing that is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    /// Name.
    pub name: &'static str,
    /// Looks.
    run: fn(&Facts, &Config, &mut Findings),
}

/// What one check found.
#[derive(Debug)]
struct Findings {
    check: &'static str,
    all: Vec<Finding>,
}

impl Findings {
    fn ok(&mut self, found: impl Into<String>) {
        self.all.push(Finding { check: self.check, level: Level::Ok, found: found.into(), remedy: None });
    }

    fn warning(&mut self, found: impl Into<String>, remedy: impl Into<String>) {
        self.push(Level::Warning, found.into(), remedy.into());
    }

    fn error(&mut self, found: impl Into<String>, remedy: impl Into<String>) {
        self.push(Level::Error, found.into(), remedy.into());
    }

    fn push(&mut self, level: Level, found: String, remedy: String) {
        self.all.push(Finding { check: self.check, level, found, remedy: Some(remedy) });
    }
}

/// Everything that is looked at, in the order of the answer.
pub const CHECKS: &[Check] = &[
    Check { name: "kernel", run: checks::kernel },
    Check { name: "XDP", run: checks::xdp },
    Check { name: "AF_XDP", run: checks::xsk },
    Check { name: "BTF", run: checks::btf },
    Check { name: "bpffs", run: checks::bpffs },
    Check { name: "capabilities", run: checks::capabilities },
    Check { name: "locked memory", run: checks::memlock },
    Check { name: "huge pages", run: checks::huge_pages },
    Check { name: "cores", run: checks::cores },
    Check { name: "uplink", run: checks::uplinks },
    Check { name: "MTU", run: checks::mtu },
    Check { name: "rp_filter", run: checks::rp_filter },
    Check { name: "systemd-networkd", run: networkd::check },
    Check { name: "packet buffers", run: checks::packet_buffers },
    Check { name: "reserved ports", run: checks::reserved_ports },
    Check { name: "network plugins", run: neighbours::plugins },
    Check { name: "kube-proxy", run: neighbours::kube_proxy },
    Check { name: "source", run: checks::source },
    Check { name: "API server", run: api::check },
];

/// What all checks find.
#[must_use]
pub fn examine(facts: &Facts, config: &Config) -> Vec<Finding> {
    let run = |check: &Check| {
        let mut findings = Findings { check: check.name, all: Vec::new() };
        (check.run)(facts, config, &mut findings);
        findings.all
    };
    CHECKS.iter().flat_map(run).collect()
}

/// The worst level found.
#[must_use]
pub fn worst(findings: &[Finding]) -> Level {
    findings.iter().map(|f| f.level).max().unwrap_or(Level::Ok)
}
