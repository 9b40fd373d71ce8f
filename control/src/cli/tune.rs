//! `fastpath tune`.
#![forbid(unsafe_code)]

use std::io::Write;

use clap::Args;

use super::args::Output;
use super::{Failure, json};
use crate::tune::{Machine, Profile, advise, toml};

/// What `fastpath tune --help` ends with.
pub(super) const HELP: &str = "\
Looks at cores (online, isolated, siblings, NUMA nodes), memory, pages of 2 MB, and the devices of the default routes (driver,
queues, speed, MTU), and prints a configuration to begin with, the reason above each value. Nothing is written and nothing
changed; no rights are needed, and what cannot be read is named. Run it where the daemon will run (the same cpuset and
control group), and look at what it says:
  fastpath tune --profile dense > fastpath.toml && fastpath config check fastpath.toml";

#[derive(Debug, Args)]
pub(super) struct TuneArgs {
    /// Start from a ready profile instead of the defaults.
    #[arg(long, value_enum, value_name = "NAME")]
    profile: Option<Profile>,
}

/// Prints a configuration for this machine.
pub(super) fn tune(args: &TuneArgs, output: Output, out: &mut impl Write) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let machine = runtime.block_on(async { Machine::read() });
    let settings = advise(&machine, args.profile);
    let text = toml(&machine, args.profile, &settings);
    match output {
        Output::Table => Ok(out.write_all(text.as_bytes())?),
        Output::Json => {
            let all = serde_json::json!({
                "profile": args.profile,
                "machine": machine,
                "settings": settings,
                "config": text,
            });
            json(out, &all)
        }
    }
}
