//! Health by named checks, shown as the components of Kubernetes show theirs.
//!
//! `/readyz` says `ok` or what failed; `?verbose` says each check, `[+]name ok` or `[-]name failed: reason`;
//! `?exclude=NAME` leaves one out; `/readyz/NAME` is one check alone.
#![forbid(unsafe_code)]

use std::fmt::Write as _;

use hyper::StatusCode;

use super::Reply;

/// One check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Its name: lower case, no blanks.
    pub name: &'static str,
    /// Why it fails; `None` when all is well.
    pub failed: Option<String>,
}

impl Check {
    /// Passes if `good`, else fails for a reason.
    pub fn new(name: &'static str, good: bool, reason: impl FnOnce() -> String) -> Self {
        Self { name, failed: (!good).then(reason) }
    }
}

/// Whether all pass.
#[must_use]
pub fn passed(checks: &[Check]) -> bool {
    checks.iter().all(|c| c.failed.is_none())
}

/// The answer of the endpoint `name` (`livez`, `readyz`); `path` is what follows it, as `/workers` or nothing.
#[must_use]
pub fn reply(name: &str, checks: &[Check], path: &str, query: &str) -> Reply {
    let parameters = || query.split('&').map(|p| p.split_once('=').unwrap_or((p, "")));
    let excluded: Vec<&str> = parameters().filter(|(k, _)| *k == "exclude").map(|(_, v)| v).collect();
    let mut considered: Vec<&Check> = checks.iter().filter(|c| !excluded.contains(&c.name)).collect();
    match path.trim_matches('/') {
        "" => {}
        one => {
            considered.retain(|c| c.name == one);
            if considered.is_empty() {
                return Reply::not_found();
            }
        }
    }
    let good = considered.iter().all(|c| c.failed.is_none());
    if good && !parameters().any(|(k, _)| k == "verbose") {
        return Reply::text(StatusCode::OK, "ok");
    }
    let mut body = String::new();
    for check in checks {
        // Writing to a String cannot fail.
        let _ = match &check.failed {
            _ if excluded.contains(&check.name) => writeln!(body, "[+]{} excluded: ok", check.name),
            _ if !considered.iter().any(|c| c.name == check.name) => Ok(()),
            None => writeln!(body, "[+]{} ok", check.name),
            Some(reason) => writeln!(body, "[-]{} failed: {}", check.name, one_line(reason)),
        };
    }
    let unknown: Vec<&&str> = excluded.iter().filter(|e| !checks.iter().any(|c| c.name == **e)).collect();
    if !unknown.is_empty() {
        let _ = writeln!(body, "warn: some health checks cannot be excluded: no matches for {unknown:?}");
    }
    let _ = writeln!(body, "{name} check {}", if good { "passed" } else { "failed" });
    Reply::text(if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, body)
}

fn one_line(reason: &str) -> String {
    reason.split_whitespace().collect::<Vec<_>>().join(" ")
}
