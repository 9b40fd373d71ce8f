//! DPDK's `rte_hash` in a process of its own: the program beside this file, compiled where DPDK's headers are.
#![forbid(unsafe_code)]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// What a lookup does besides finding the key.
#[derive(Clone, Copy)]
pub(crate) enum Mode {
    /// Hashes the key.
    Hashing = 0,
    /// Is given its hash, as ours is.
    Hashed = 1,
    /// The same, and the line of 64 bytes that is kept for the key is read, as ours is.
    WithValue = 2,
}

/// A running program with a table.
pub(crate) struct RteHash {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// Whether its memory is on huge pages.
    pub(crate) huge: bool,
}

impl RteHash {
    /// A table of `entries` keys of `key_len` bytes, for lock-free readers if so; says why there is none.
    pub(crate) fn new(
        program: &Program,
        entries: u32,
        key_len: u32,
        lock_free: bool,
    ) -> Result<Self, String> {
        let memory = ((u64::from(entries) * u64::from(key_len + 96)) >> 20) + 256;
        let huge = program.pages.as_ref().is_some_and(|p| p.has(memory / 2));
        let core = std::thread::available_parallelism().map_or(0, |n| n.get() - 1).to_string();
        let mut command = Command::new(&program.path);
        command.args(["-l", &core, "--no-pci", "--no-telemetry", "--no-shconf", "--log-level", "3"]);
        if huge {
            command.arg("--in-memory");
        } else {
            command.args(["--no-huge", "-m", &memory.to_string()]);
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| e.to_string())?;
        let input = child.stdin.take().ok_or("no pipe")?;
        let output = BufReader::new(child.stdout.take().ok_or("no pipe")?);
        let mut this = Self { child, input, output, huge };
        // Others may write before: DPDK's own messages.
        while this.line()? != "ready" {}
        let made = this.ask(&format!("make {entries} {key_len} {}", u32::from(lock_free)))?;
        if made != format!("ok {entries} {}", u32::from(huge)) {
            return Err(format!("a table of {entries} entries: {made}"));
        }
        Ok(this)
    }

    fn line(&mut self) -> Result<String, String> {
        let mut line = String::new();
        match self.output.read_line(&mut line) {
            Ok(0) => Err("the program ended".into()),
            Ok(_) => Ok(line.trim_end().into()),
            Err(e) => Err(e.to_string()),
        }
    }

    fn ask(&mut self, command: &str) -> Result<String, String> {
        writeln!(self.input, "{command}").map_err(|e| e.to_string())?;
        self.line()
    }

    /// Median of time stamp cycles a key over `millis` milliseconds.
    pub(crate) fn run(&mut self, zipf: bool, mode: Mode, millis: u32) -> f64 {
        let answer = self.ask(&format!("run {} {} {millis}", u32::from(zipf), mode as u32)).unwrap();
        let words: Vec<_> = answer.split(' ').collect();
        assert!(words.len() == 5 && words[4] == "0", "every key is there: {answer}");
        words[1].parse().unwrap()
    }
}

impl Drop for RteHash {
    fn drop(&mut self) {
        // It ends with its input, which is closed after this; a program that hangs must not stay.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The compiled program.
pub(crate) struct Program {
    path: PathBuf,
    pages: Option<HugePages>,
}

impl Program {
    /// Compiles it; says why not.
    pub(crate) fn compile() -> Result<Self, String> {
        let flags = Command::new("pkg-config").args(["--cflags", "libdpdk"]).output();
        let flags = flags.ok().filter(|o| o.status.success()).ok_or("dpdk-dev not installed")?;
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/flow/rte_hash.c");
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("rte_hash");
        let flags = String::from_utf8_lossy(&flags.stdout).into_owned();
        let built = Command::new("cc")
            .args(["-O3", "-o"])
            .arg(&path)
            .arg(source)
            .args(flags.split_whitespace().filter(|f| !f.starts_with("-march")))
            .args(["-march=native", "-lrte_hash", "-lrte_eal", "-lm"])
            .output()
            .map_err(|e| format!("cc: {e}"))?;
        if !built.status.success() {
            return Err(format!("not compiled: {}", String::from_utf8_lossy(&built.stderr)));
        }
        Ok(Self { path, pages: HugePages::take() })
    }
}

/// Huge pages of 2 MiB set aside for DPDK, which takes no transparent ones; given back when dropped. `None` for who
/// may not.
struct HugePages {
    before: u64,
}

const POOL: &str = "/proc/sys/vm/nr_hugepages";
const PAGES: u64 = 2048;

impl HugePages {
    fn take() -> Option<Self> {
        let read = || std::fs::read_to_string(POOL).ok()?.trim().parse::<u64>().ok();
        let this = Self { before: read()? };
        std::fs::write(POOL, (this.before + PAGES).to_string()).ok()?;
        Some(this)
    }

    /// Whether that many are free.
    fn has(&self, pages: u64) -> bool {
        let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let free = info.lines().find_map(|l| l.strip_prefix("HugePages_Free:")?.trim().parse::<u64>().ok());
        free.is_some_and(|free| free >= pages)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = std::fs::write(POOL, self.before.to_string());
    }
}
