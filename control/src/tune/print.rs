//! Settings as a configuration file.
#![forbid(unsafe_code)]

use std::fmt::Write as _;

use super::{Machine, Profile, Setting};

/// Longest line of a comment.
const WIDTH: usize = 110;

/// The file: what was seen of the machine, then each setting below its reason.
#[must_use]
pub fn toml(machine: &Machine, profile: Option<Profile>, settings: &[Setting]) -> String {
    let mut out = String::new();
    comment(
        &mut out,
        "Configuration of `fastpath run` for this machine, by `fastpath tune`. Every other key has its default.",
    );
    if let Some(profile) = profile {
        comment(&mut out, &format!("Profile \"{}\".", profile.name()));
    }
    out.push_str("#\n");
    for line in machine.summary() {
        comment(&mut out, &line);
    }
    for what in &machine.unread {
        comment(&mut out, &format!("Not read: {what}"));
    }
    let mut sections: Vec<&str> = Vec::new();
    for setting in settings {
        if !sections.contains(&setting.section.as_str()) {
            sections.push(&setting.section);
        }
    }
    for section in sections {
        // Writing to a String cannot fail.
        let _ = write!(out, "\n[{section}]");
        for Setting { key, value, reason, .. } in settings.iter().filter(|s| s.section == section) {
            out.push('\n');
            comment(&mut out, reason);
            let _ = write!(out, "{key} = {value}");
        }
        out.push('\n');
    }
    out
}

/// Text as comment lines. Names come from the machine: no character of theirs ends a line.
fn comment(out: &mut String, text: &str) {
    let mut line = String::from("#");
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|w| !w.is_empty()) {
        if line.len() > 1 && line.len() + 1 + word.len() > WIDTH {
            out.push_str(&line);
            out.push('\n');
            line.truncate(1);
        }
        line.push(' ');
        line.push_str(word);
    }
    out.push_str(&line);
    out.push('\n');
}
