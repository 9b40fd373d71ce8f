//! Programs that forward: started in the node's namespace, ended by their ids.
#![forbid(unsafe_code)]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::super::topology::Topology;

/// Longest time for an end before it is killed.
const LIMIT: Duration = Duration::from_secs(10);

/// Running programs, the last started ended first.
#[derive(Debug, Default)]
pub(crate) struct Processes {
    running: Vec<(Child, Option<ChildStdin>)>,
}

impl Processes {
    /// Starts a program in the node's namespace; its output goes to `log`. It goes when this process is killed.
    pub(super) fn start(
        &mut self,
        topology: &Topology,
        args: &[&str],
        variables: &[(&str, &Path)],
        log: &Path,
    ) -> Result<()> {
        let out = File::create(log)?;
        let net = format!("--net={}", topology.node.path());
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "nsenter", &net, "--"])
            .args(args)
            .envs(variables.iter().copied())
            .stdin(Stdio::piped())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .context("setpriv and nsenter of util-linux")?;
        // Kept open: testpmd ends with its input.
        let input = child.stdin.take();
        self.running.push((child, input));
        Ok(())
    }

    /// Waits until `ready`; an error with the log's last lines when a program ends or it takes too long.
    pub(super) fn wait_until(&mut self, what: &str, log: &Path, ready: impl Fn() -> bool) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(30);
        while !ready() {
            let ended = self.running.iter_mut().any(|(child, _)| !matches!(child.try_wait(), Ok(None)));
            if ended || Instant::now() > end {
                let text = std::fs::read_to_string(log).unwrap_or_default();
                let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
                bail!("{what}: {}", lines[lines.len().saturating_sub(3)..].join(" / "));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        while let Some((mut child, input)) = self.running.pop() {
            drop(input);
            if let Ok(pid) = child.id().try_into() {
                // Fails only when it has ended already.
                let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            }
            let end = Instant::now() + LIMIT;
            while matches!(child.try_wait(), Ok(None)) {
                if Instant::now() > end {
                    let _ = child.kill();
                    let _ = child.wait();
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

/// Where a program is, or an error that names it and its package.
pub(super) fn installed(program: &str, package: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .map(|dir| dir.join(program))
        .find(|file| file.is_file());
    found.with_context(|| format!("{program} is not installed (package {package})"))
}
