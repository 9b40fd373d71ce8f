//! The documented configuration file: every key with its default, what is allowed and its meaning.
#![forbid(unsafe_code)]

use std::fmt::Write as _;

use super::keys::{
    Daemon, Flow, Host, Http, Icmp, Memory, NodeSection, Overlay, Pods, Policy, Services, Snat, Source,
    Timeouts, Uplink, Workers, Xdp,
};

/// One key, as the documented file shows it.
pub(super) struct KeyDoc {
    pub(super) key: &'static str,
    pub(super) about: &'static [&'static str],
    pub(super) allowed: String,
    pub(super) default: Option<String>,
}

/// The text of `configs/fastpath.toml`, made from the keys the code has.
#[must_use]
pub fn reference() -> String {
    let mut out = String::from(
        "# Configuration of `fastpath run`. Every key may be left out; the value shown is its default.\n\
         # Check a file with `fastpath config check FILE`; unknown keys and wrong values are refused.\n\
         # This file is made by `fastpath config reference`.\n",
    );
    macro_rules! sections {
        ($($section:ident),+) => {$(
            section(&mut out, $section::TABLE, $section::ABOUT, &$section::describe());
        )+};
    }
    sections!(
        NodeSection,
        Daemon,
        Http,
        Source,
        Pods,
        Xdp,
        Uplink,
        Host,
        Overlay,
        Workers,
        Memory,
        Flow,
        Timeouts,
        Icmp,
        Policy,
        Services,
        Snat
    );
    out
}

fn section(out: &mut String, table: &str, about: &[&str], keys: &[KeyDoc]) {
    out.push('\n');
    for line in about {
        push(out, &format!("#{line}"));
    }
    push(out, &format!("[{table}]"));
    for key in keys {
        out.push('\n');
        for line in key.about {
            push(out, &format!("#{line}"));
        }
        push(out, &format!("# Allowed: {}.", key.allowed));
        match &key.default {
            Some(default) => push(out, &format!("{} = {default}", key.key)),
            None => push(out, &format!("# {} = ...", key.key)),
        }
    }
}

fn push(out: &mut String, line: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{}", line.trim_end());
}
