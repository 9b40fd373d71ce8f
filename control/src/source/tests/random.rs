//! Properties: nothing panics, lines are right, reading again gives what reading from scratch gives.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::Value;

use super::super::directory::Loader;
use super::super::{document, load_dir, yaml};
use super::{Folder, pod};
use crate::lines::Lines;

const MANIFESTS: &str = concat!(
    include_str!("../../../../configs/demo/manifests/nodes.yaml"),
    "---\n",
    include_str!("../../../../configs/demo/manifests/namespaces.yaml"),
    "---\n",
    include_str!("../../../../configs/demo/manifests/pods-a.yaml"),
    "---\napiVersion: v1\nkind: List\nitems:\n- &x {apiVersion: v1, kind: Pod, metadata: {name: l}}\n- <<: *x\n  metadata: {name: \"m\", labels: {a: !!str 5}}\n",
);

fn edits() -> impl Strategy<Value = Vec<(Index, u8, u8)>> {
    let bytes = prop_oneof![prop::sample::select(&b" \n\t-:[]{}#&*!|>'\"%@`,?<=~.0"[..]), any::<u8>()];
    prop::collection::vec((any::<Index>(), bytes, 0u8..6), 1..10)
}

fn mutate(text: &str, edits: &[(Index, u8, u8)]) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    for (at, byte, how) in edits {
        if bytes.is_empty() {
            break;
        }
        let i = at.index(bytes.len());
        match how {
            0 | 1 => bytes[i] = *byte,
            2 => drop(bytes.remove(i)),
            3 => bytes.insert(i, *byte),
            4 => {
                // A piece of the text once more, elsewhere.
                let piece = bytes[i..(i + 40).min(bytes.len())].to_vec();
                let to = (i * 7 + usize::from(*byte)) % bytes.len();
                bytes.splice(to..to, piece);
            }
            _ => bytes.truncate(i.max(1)),
        }
    }
    bytes
}

/// Every part of `value` has a line in `lines`, and the text of a plain key stands on it.
fn lines_fit(value: &Value, lines: &Lines, text: &[&str]) -> Result<(), TestCaseError> {
    prop_assert!(lines.line() >= 1 && lines.line() as usize <= text.len().max(1), "{}", lines.line());
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let at = lines.key(key);
                prop_assert!(at.is_some(), "{key}");
                lines_fit(value, at.expect("checked"), text)?;
            }
        }
        Value::Array(items) => {
            for (i, value) in items.iter().enumerate() {
                prop_assert!(lines.index(i).is_some(), "[{i}]");
                lines_fit(value, lines.index(i).expect("checked"), text)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// `value` as block YAML, all strings quoted; `lines` gets the line of every key, by path.
fn emit(value: &Value, indent: usize, path: &str, out: &mut String, lines: &mut BTreeMap<String, u32>) {
    let pad = " ".repeat(indent);
    let line = |out: &str| u32::try_from(out.matches('\n').count() + 1).expect("small");
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                lines.insert(path.clone(), line(out));
                out.push_str(&format!("{pad}{key}:"));
                let nested = matches!(value, Value::Object(m) if !m.is_empty())
                    || matches!(value, Value::Array(a) if !a.is_empty());
                out.push_str(if nested { "\n" } else { " " });
                emit(value, indent + 2, &path, out, lines);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for (i, item) in items.iter().enumerate() {
                let path = format!("{path}[{i}]");
                out.push_str(&format!("{pad}-\n"));
                emit(item, indent + 2, &path, out, lines);
            }
        }
        scalar => out.push_str(&format!("{pad}{scalar}\n")),
    }
}

fn tree() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        "[ -~]{0,12}".prop_map(Value::from),
    ];
    let map = |inner| {
        prop::collection::btree_map("k[a-z]{1,5}", inner, 0..5)
            .prop_map(|m| Value::Object(m.into_iter().collect()))
    };
    let node = leaf.prop_recursive(4, 40, 5, move |inner| {
        prop_oneof![prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from), map(inner)]
    });
    prop::collection::btree_map("k[a-z]{1,5}", node, 1..5)
        .prop_map(|m| Value::Object(m.into_iter().collect()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    /// Mutated manifests: no panic, every problem and every object on a line of the file.
    #[test]
    fn mutated_manifests_never_panic(edits in edits()) {
        let bytes = mutate(MANIFESTS, &edits);
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.split('\n').collect();
        for name in ["x.yaml", "x.json"] {
            let path: Arc<str> = name.into();
            for found in document::read(&path, &text) {
                if let Err(fault) = found {
                    prop_assert!(fault.line >= 1 && fault.line as usize <= lines.len(), "{fault:?}");
                }
            }
            let objects = super::super::assemble::FileObjects::read(&path, &text);
            let files = [(path, Arc::new(objects))].into();
            let _ = super::super::assemble::assemble(&files, &BTreeMap::new());
        }
        for found in yaml::documents(&text).into_iter().flatten() {
            lines_fit(&found.value, &found.lines, &lines)?;
        }
    }

    /// Any bytes at all.
    #[test]
    fn any_text_never_panics(text in any::<String>(), ascii in "[ -~\n\t]{0,200}") {
        for text in [text, ascii] {
            let _ = document::read(&"x.yaml".into(), &text);
            let _ = document::read(&"x.json".into(), &text);
        }
    }

    /// What is written as YAML is read back, and every key is found on its line.
    #[test]
    fn values_and_lines_survive(docs in prop::collection::vec(tree(), 1..4)) {
        let (mut text, mut want) = (String::new(), Vec::new());
        for doc in &docs {
            text.push_str("---\n");
            let first = u32::try_from(text.matches('\n').count()).expect("small");
            let (mut body, mut lines) = (String::new(), BTreeMap::new());
            emit(doc, 0, "", &mut body, &mut lines);
            text.push_str(&body);
            want.push((first, lines));
        }
        let got = yaml::documents(&text);
        prop_assert_eq!(got.len(), docs.len());
        for ((got, doc), (first, lines)) in got.into_iter().zip(&docs).zip(want) {
            let got = got.map_err(|e| TestCaseError::fail(format!("{e:?}\n{text}")))?;
            prop_assert_eq!(&got.value, doc);
            for (path, line) in lines {
                prop_assert_eq!(got.lines.at(&path), first + line, "{}\n{}", path, text);
            }
        }
    }
}

/// One step in the life of a folder.
#[derive(Clone, Debug)]
enum Step {
    Write(u8, Vec<(u8, u8)>),
    Remove(u8),
    Rename(u8, u8),
}

fn step() -> impl Strategy<Value = Step> {
    let pods = prop::collection::vec((0u8..40, 0u8..30), 0..5);
    prop_oneof![
        4 => (0u8..5, pods).prop_map(|(f, p)| Step::Write(f, p)),
        1 => (0u8..5).prop_map(Step::Remove),
        1 => (0u8..5, 0u8..5).prop_map(|(a, b)| Step::Rename(a, b)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// After any history of right files: the model and the problems of a fresh reading. (With documents that
    /// are wrong or there twice the history matters by design: the last good state stays in force.)
    #[test]
    fn reading_again_is_reading_from_scratch(steps in prop::collection::vec(step(), 1..20)) {
        let dir = Folder::new();
        let mut loader = Loader::new(dir.path().to_path_buf());
        // Pod names are the file's own, so that no object is there twice; addresses do clash.
        let text = |file: u8, pods: &[(u8, u8)]| {
            let pods: BTreeMap<u8, u8> = pods.iter().copied().collect();
            pods.iter().map(|(p, ip)| format!("---\n{}", pod(&format!("f{file}-p{p}"), &format!("10.0.0.{}", ip + 1)))).collect::<String>()
        };
        for step in steps {
            match step {
                Step::Write(f, pods) => dir.write(&format!("{f}.yaml"), &text(f, &pods)),
                Step::Remove(f) => drop(std::fs::remove_file(dir.path().join(format!("{f}.yaml")))),
                Step::Rename(a, b) => drop(std::fs::rename(dir.path().join(format!("{a}.yaml")), dir.path().join(format!("{b}.yaml")))),
            }
            let before = loader.update();
            let changed = loader.reload(&BTreeSet::new());
            let (again, scratch) = (loader.update(), load_dir(dir.path()).expect("folder"));
            // After a rename onto itself's neighbour, names may be there twice: not this property.
            if scratch.problems.iter().any(|p| p.reason.contains("twice")) {
                return Ok(());
            }
            prop_assert_eq!(&*again.model, &*scratch.model);
            prop_assert_eq!(&again.problems, &scratch.problems);
            if !changed {
                prop_assert!(Arc::ptr_eq(&before.model, &again.model));
                prop_assert_eq!(before.problems, again.problems);
            }
        }
    }
}
