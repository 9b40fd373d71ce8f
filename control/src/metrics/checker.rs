//! A strict reader of the two text formats, for tests: what `promtool check metrics` finds, and what OpenMetrics 1.0
//! asks beyond that.

use std::collections::{BTreeMap, BTreeSet};

/// Labels and value of each sample, by the family's name.
pub(crate) type Samples = BTreeMap<String, Vec<(BTreeMap<String, String>, f64)>>;

/// Reads an exposition.
///
/// # Errors
/// What is wrong with it, and in which line.
pub(crate) fn check(text: &str, open: bool) -> Result<Samples, String> {
    let mut samples = Samples::new();
    let mut helped = BTreeSet::new();
    let mut family: Option<(String, String)> = None;
    let mut done = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let mut ended = false;
    if !text.ends_with('\n') {
        return Err("no newline at the end".to_owned());
    }
    for (number, line) in (1..).zip(text.lines()) {
        let fail = |why: &str| format!("line {number}: {why}: {line}");
        if ended {
            return Err(fail("something after EOF"));
        }
        if line.is_empty() || line.contains('\r') || line != line.trim() {
            return Err(fail("blank"));
        }
        if let Some(comment) = line.strip_prefix("# ") {
            if comment == "EOF" {
                ended = true;
                continue;
            }
            let mut words = comment.splitn(3, ' ');
            let (kind, name) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
            let rest = words.next().unwrap_or("");
            name_is_good(name).map_err(|e| fail(&e))?;
            match kind {
                "HELP" if rest.is_empty() || !rest.ends_with('.') => return Err(fail("no sentence")),
                "HELP" if !helped.insert(name.to_owned()) => return Err(fail("HELP twice")),
                "HELP" => {}
                "TYPE" => {
                    if !helped.contains(name) {
                        return Err(fail("TYPE without HELP before it"));
                    }
                    if !done.insert(name.to_owned()) {
                        return Err(fail("TYPE twice, or samples of a family apart"));
                    }
                    if !["counter", "gauge"].contains(&rest) {
                        return Err(fail("unknown type"));
                    }
                    let total = name.ends_with("_total");
                    if total == open && rest == "counter" || total && rest == "gauge" {
                        return Err(fail(
                            "_total is for counters, and in OpenMetrics for their samples alone",
                        ));
                    }
                    family = Some((name.to_owned(), rest.to_owned()));
                }
                "UNIT" if open && name.ends_with(&format!("_{rest}")) => {}
                _ => return Err(fail("unknown comment")),
            }
            continue;
        }
        let (name, labels, value) = sample(line).map_err(|e| fail(&e))?;
        let Some((family, kind)) = &family else { return Err(fail("sample without TYPE")) };
        let expected = if open && kind == "counter" { format!("{family}_total") } else { family.clone() };
        if name != expected {
            return Err(fail("a sample of another family"));
        }
        if kind == "counter" && value < 0.0 {
            return Err(fail("a negative counter"));
        }
        if !seen.insert((name.clone(), labels.clone())) {
            return Err(fail("the same series twice"));
        }
        samples.entry(expected).or_default().push((labels, value));
    }
    if ended != open {
        return Err("EOF is OpenMetrics'".to_owned());
    }
    match helped.iter().find(|name| !done.contains(*name)) {
        Some(name) => Err(format!("{name}: HELP without TYPE")),
        None => Ok(samples),
    }
}

fn name_is_good(name: &str) -> Result<(), String> {
    let good = name.starts_with("fastpath_") || name.starts_with("process_");
    let characters = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    let unit = ["milliseconds", "_ms", "_kilobytes", "_minutes"].iter().any(|u| name.contains(u));
    if good && characters && !unit && !name.contains("__") { Ok(()) } else { Err(format!("name {name}")) }
}

type Sample = (String, BTreeMap<String, String>, f64);

fn sample(line: &str) -> Result<Sample, String> {
    let end = line.find(['{', ' ']).ok_or("no value")?;
    let (name, mut rest) = line.split_at(end);
    name_is_good(name)?;
    let mut labels = BTreeMap::new();
    if let Some(mut inner) = rest.strip_prefix('{') {
        loop {
            if let Some(after) = inner.strip_prefix('}') {
                rest = after;
                break;
            }
            let (label, after) = inner.split_once("=\"").ok_or("no label value")?;
            if label.is_empty() || !label.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') {
                return Err(format!("label {label}"));
            }
            let mut value = String::new();
            let mut escaped = false;
            let mut end = None;
            for (at, c) in after.char_indices() {
                match c {
                    'n' if escaped => value.push('\n'),
                    '"' | '\\' if escaped => value.push(c),
                    _ if escaped => return Err("unknown escape".to_owned()),
                    '\\' => {
                        escaped = true;
                        continue;
                    }
                    '"' => {
                        end = Some(at + 1);
                        break;
                    }
                    c => value.push(c),
                }
                escaped = false;
            }
            inner = after.get(end.ok_or("no closing quote")?..).unwrap_or("");
            if labels.insert(label.to_owned(), value).is_some() {
                return Err(format!("label {label} twice"));
            }
            inner = inner.strip_prefix(',').unwrap_or(inner);
        }
    }
    let value = rest.strip_prefix(' ').ok_or("no blank before the value")?;
    Ok((name.to_owned(), labels, value.parse().map_err(|_| format!("value {value}"))?))
}
