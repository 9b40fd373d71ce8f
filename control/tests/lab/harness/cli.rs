//! The command line as the tests use it. Everything they assume about the JSON stands in this file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use serde_json::Value;

/// The binary under test. `FASTPATH_LAB_BINARY` names another, to compare builds by the same test.
pub(crate) static BINARY: LazyLock<String> = LazyLock::new(|| {
    std::env::var("FASTPATH_LAB_BINARY").unwrap_or_else(|_| env!("CARGO_BIN_EXE_fastpath").to_owned())
});

/// Topics of `fastpath show`.
pub(crate) const TOPICS: [&str; 10] = [
    "endpoints",
    "nodes",
    "flows",
    "routes",
    "neighbors",
    "drops",
    "policies",
    "services",
    "ports",
    "runtime",
];

/// The command line of one daemon.
#[derive(Clone, Debug)]
pub(crate) struct Cli {
    state_dir: PathBuf,
}

/// How a command ended.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// Exit code; -1 when a signal ended it.
    pub(crate) code: i32,
    /// Standard output.
    pub(crate) stdout: String,
    /// Standard error.
    pub(crate) stderr: String,
}

/// Runs the binary without a daemon.
pub(crate) fn fastpath(args: &[&str]) -> Outcome {
    let out = Command::new(&*BINARY).args(args).stdin(Stdio::null()).output().expect("the binary starts");
    Outcome {
        code: out.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&out.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&out.stderr).into_owned(),
    }
}

impl Cli {
    /// For the daemon with this state folder.
    pub(crate) fn new(state_dir: &Path) -> Self {
        Cli { state_dir: state_dir.to_owned() }
    }

    /// Runs one command.
    pub(crate) fn run(&self, args: &[&str]) -> Outcome {
        let dir = self.state_dir.to_str().expect("the lab's paths are UTF-8");
        let mut all = vec!["--state-dir", dir];
        all.extend(args);
        fastpath(&all)
    }

    /// Runs one command with `-o json`; `None` when it fails (for example: no daemon yet).
    pub(crate) fn try_json(&self, args: &[&str]) -> Option<Value> {
        let mut all = args.to_vec();
        all.extend(["-o", "json"]);
        let out = self.run(&all);
        (out.code == 0).then(|| {
            serde_json::from_str(&out.stdout).unwrap_or_else(|e| panic!("{args:?}: {e} in {}", out.stdout))
        })
    }

    /// Like [`Cli::try_json`]; panics when it fails.
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        self.try_json(args).unwrap_or_else(|| panic!("fastpath {args:?} -o json: {:?}", self.run(args)))
    }

    /// `status`; panics without a daemon.
    pub(crate) fn status(&self) -> Status {
        self.try_status().unwrap_or_else(|| panic!("fastpath status: {:?}", self.run(&["status"])))
    }

    /// `status`, or `None` without a daemon.
    pub(crate) fn try_status(&self) -> Option<Status> {
        // It ends with 1, and prints all the same, when the daemon is degraded.
        let out = self.run(&["status", "-o", "json"]);
        matches!(out.code, 0 | 1).then(|| serde_json::from_str(&out.stdout).ok().map(Status)).flatten()
    }

    /// Drop counters by name, over all workers and ports.
    pub(crate) fn drops(&self) -> BTreeMap<String, u64> {
        let mut drops = BTreeMap::new();
        for row in rows(&self.json(&["show", "drops"])) {
            if let (Some(name), Some(count)) = (row["reason"].as_str(), row["packets"].as_u64()) {
                *drops.entry(name.to_owned()).or_default() += count;
            }
        }
        drops
    }

    /// One drop counter.
    pub(crate) fn drop_count(&self, reason: &str) -> u64 {
        self.drops().get(reason).copied().unwrap_or(0)
    }

    /// Whether the endpoint with this address is attached and in force.
    pub(crate) fn endpoint_ready(&self, address: &str) -> bool {
        let Some(value) = self.try_json(&["show", "endpoints"]) else { return false };
        rows(&value).iter().any(|row| contains_text(row, address) && row["state"] == "attached")
    }

    /// Whether any endpoint has this address.
    pub(crate) fn endpoint_listed(&self, address: &str) -> bool {
        self.try_json(&["show", "endpoints"])
            .is_some_and(|value| rows(&value).iter().any(|row| contains_text(row, address)))
    }

    /// Worker that serves queue 0 of a device, by `show ports`: a veth whose peer has one tx queue receives there.
    pub(crate) fn worker_of(&self, device: &str) -> Option<u64> {
        let ports = self.json(&["show", "ports"]);
        let row = rows(&ports["ports"]).into_iter().find(|row| row["name"] == device)?;
        row["queues"].as_array()?.iter().find(|queue| queue["queue"] == 0)?["worker"].as_u64()
    }

    /// XDP mode obtained by device, by `show ports`.
    pub(crate) fn modes(&self) -> BTreeMap<String, String> {
        rows(&self.json(&["show", "ports"])["ports"])
            .iter()
            .filter_map(|row| Some((row["name"].as_str()?.to_owned(), row["mode"].as_str()?.to_owned())))
            .collect()
    }

    /// Packets that an XDP program (`endpoint`, `uplink`) counted as `outcome`, by `show ports`.
    pub(crate) fn xdp_count(&self, program: &str, outcome: &str) -> u64 {
        let counters = rows(&self.json(&["show", "ports"])["xdp"]);
        let found: Vec<_> =
            counters.iter().filter(|c| c["program"] == program && c["outcome"] == outcome).collect();
        assert_eq!(found.len(), 1, "each counter once: {counters:?}");
        found[0]["packets"].as_u64().expect("a number")
    }

    /// Number of flows in the tables.
    pub(crate) fn flow_count(&self) -> u64 {
        self.json(&["show", "flows"])["total"].as_u64().unwrap_or(0)
    }
}

/// The answer of `status`.
#[derive(Clone, Debug)]
pub(crate) struct Status(pub(crate) Value);

impl Status {
    /// Attached, and the first full snapshot acknowledged by every worker.
    pub(crate) fn ready(&self) -> bool {
        self.0["ready"] == true
    }

    /// Newest snapshot generation that every worker has acknowledged.
    pub(crate) fn generation(&self) -> u64 {
        self.0["acked_generation"].as_u64().unwrap_or(0)
    }

    /// Whether every worker has acknowledged the newest snapshot.
    pub(crate) fn all_acknowledged(&self) -> bool {
        self.0["acked_generation"] == self.0["generation"]
    }

    /// Whether the source was read in full at `moment` or later.
    pub(crate) fn read_since(&self, moment: jiff::Timestamp) -> bool {
        let read = self.0["last_sync"]["at"].as_str().and_then(|at| at.parse::<jiff::Timestamp>().ok());
        read.is_some_and(|read| read.as_millisecond() >= moment.as_millisecond())
    }

    /// Whether the source has seen these versions of the API, or later ones, by kind.
    pub(crate) fn has_seen(&self, versions: &BTreeMap<String, u64>) -> bool {
        let seen = |kind: &str| self.0["source"]["versions"][kind].as_str()?.parse::<u64>().ok();
        versions.iter().all(|(kind, wanted)| seen(kind).is_some_and(|have| have >= *wanted))
    }

    /// How many ports are pods'.
    pub(crate) fn pod_ports(&self) -> usize {
        self.0["ports"].as_array().map_or(0, |ports| ports.iter().filter(|p| p["role"] == "pod").count())
    }

    /// What is wrong, in the daemon and in its source, as text.
    pub(crate) fn complaints(&self) -> String {
        format!("degraded {}, problems {}", self.0["degraded"], self.0["problems"])
    }
}

/// Rows of a `show` answer: the array itself, or the one array in it.
pub(crate) fn rows(value: &Value) -> Vec<Value> {
    match value {
        Value::Array(rows) => rows.clone(),
        Value::Object(fields) => fields.values().find_map(Value::as_array).cloned().unwrap_or_default(),
        _ => Vec::new(),
    }
}

/// Whether a string in `value` is `wanted`, alone or with a prefix length or port behind it.
fn contains_text(value: &Value, wanted: &str) -> bool {
    match value {
        Value::String(s) => s.split([',', ' ']).any(|part| part.split('/').next() == Some(wanted)),
        Value::Array(items) => items.iter().any(|v| contains_text(v, wanted)),
        Value::Object(fields) => fields.values().any(|v| contains_text(v, wanted)),
        _ => false,
    }
}
