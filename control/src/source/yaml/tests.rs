#![forbid(unsafe_code)]

use serde_json::json;

use super::*;

fn one(text: &str) -> Result<Located, SyntaxError> {
    let mut all = documents(text);
    assert_eq!(all.len(), 1, "{text}: {all:?}");
    all.remove(0)
}

#[test]
fn values() {
    for (text, want) in [
        ("a: 1", json!({"a": 1})),
        ("a: '1'", json!({"a": "1"})),
        ("a: \"x\\u00e9\\n\"", json!({"a": "xé\n"})),
        ("a: |\n  x\n  y\n", json!({"a": "x\ny\n"})),
        ("a: >-\n  x\n  y\n", json!({"a": "x y"})),
        ("a:\nb: ~", json!({"a": null, "b": null})),
        ("- 1\n- [a, b]\n- {c: d}", json!([1, ["a", "b"], {"c": "d"}])),
        ("1: a\ntrue: b\n0x10: c", json!({"1": "a", "true": "b", "16": "c"})),
        ("a: &x [1, 2]\nb: *x", json!({"a": [1, 2], "b": [1, 2]})),
        ("a: &x {p: 1, q: 2}\nb:\n  <<: *x\n  q: 3", json!({"a": {"p": 1, "q": 2}, "b": {"p": 1, "q": 3}})),
        // Of several merged mappings, the earlier wins; the own key wins wherever it stands.
        (
            "x: &x {p: 1}\ny: &y {p: 2, q: 2}\nb:\n  q: own\n  <<: [*x, *y]",
            json!({"x": {"p": 1}, "y": {"p": 2, "q": 2}, "b": {"p": 1, "q": "own"}}),
        ),
        ("'<<': 1", json!({"<<": 1})),
        (
            "a: !!str 5\nb: !!int \"5\"\nc: !!float 5.5\nd: !!null ''\ne: !!map {}\nf: ! 5",
            json!({"a": "5", "b": 5, "c": 5.5, "d": null, "e": {}, "f": "5"}),
        ),
        ("{\"a\": [1,\n\"b\"]}", json!({"a": [1, "b"]})),
        ("\u{feff}a: b\r\nc: d\r\n", json!({"a": "b", "c": "d"})),
    ] {
        assert_eq!(one(text).map(|d| d.value), Ok(want), "{text}");
    }
}

#[test]
fn errors_and_their_lines() {
    for (text, line, reason) in [
        ("a: 1\nb: 2\na: 3", 3, "key \"a\" is there twice, first on line 1"),
        ("x:\n  a: 1\n  'a': 2", 3, "key \"a\" is there twice, first on line 2"),
        ("{a: 1,\n a: 2}", 2, "there twice"),
        ("a: *x", 1, ""),
        ("a: &x [*x]", 1, "alias"),
        ("a: b: c", 1, ""),
        ("a:\n\t- b", 2, ""),
        ("a: \"b", 1, ""),
        ("a: [1", 1, ""),
        ("[a]: 1", 1, "a key is a list or a mapping"),
        ("~: 1", 1, "a key is empty"),
        ("a: 1\n<<: 5", 2, "merge key"),
        ("a: !!binary aGk=", 1, "not supported"),
        ("a: !!int x", 1, "not supported"),
        ("a: !custom [1]", 1, "not supported"),
    ] {
        let error = one(text).expect_err(text);
        assert!(error.reason.starts_with("YAML: ") && error.reason.contains(reason), "{text}: {error:?}");
        assert!(error.line >= line && error.line <= line + 1, "{text}: {error:?}");
    }
}

#[test]
fn bounded_depth_and_aliases() {
    let deep = "[".repeat(10_000);
    assert!(one(&deep).expect_err("deep").reason.contains("deeply") || deep.len() == 10_000);
    let flow = format!("{}{}", "[".repeat(MAX_DEPTH + 1), "]".repeat(MAX_DEPTH + 1));
    assert!(one(&flow).is_err());
    let fits = format!("{}{}", "[".repeat(MAX_DEPTH), "]".repeat(MAX_DEPTH));
    assert!(one(&fits).is_ok());
    // Each level by alias inside the next: deeper than any nesting in the text.
    let mut aliased = String::from("l0: &l0 [x]\n");
    for i in 1..200 {
        aliased.push_str(&format!("l{i}: &l{i} [*l{}]\n", i - 1));
    }
    assert!(one(&aliased).expect_err("deep").reason.contains("nested too deeply"));
    // Ten to the ninth values out of ten lines.
    let mut laughs = String::from("l0: &l0 [x,x,x,x,x,x,x,x,x,x]\n");
    for i in 1..10 {
        let inner = vec![format!("*l{}", i - 1); 10].join(",");
        laughs.push_str(&format!("l{i}: &l{i} [{inner}]\n"));
    }
    assert!(one(&laughs).expect_err("laughs").reason.contains("too many values"));
}

#[test]
fn documents_are_cut_where_yaml_says() {
    let lines = |text: &str| {
        let all = documents(text).into_iter();
        all.map(|d| d.map(|d| d.lines.line()).map_err(|e| e.line)).collect::<Vec<_>>()
    };
    assert_eq!(lines(""), []);
    assert_eq!(lines("# nothing\n---\n# nothing\n"), []);
    assert_eq!(lines("a: 1\n---\nb: 2\n"), [Ok(1), Ok(3)]);
    assert_eq!(lines("---\na: 1\n--- # comment\nb: 2\n"), [Ok(2), Ok(4)]);
    assert_eq!(lines("--- {a: 1}\n--- {b: 2}"), [Ok(1), Ok(2)]);
    assert_eq!(lines("%YAML 1.2\n---\na: 1\n...\n%YAML 1.2\n---\nb: 2\n"), [Ok(3), Ok(7)]);
    assert_eq!(lines("a: |\n  text\n  ---\n  more\nb: 1"), [Ok(1)]);
    assert!(lines("a: 1\n----\nb: 2")[0].is_err());
    assert_eq!(lines("a: 1\n---\nb: [\n---\nc: 3\n"), [Ok(1), Err(3), Ok(5)]);
    assert_eq!(lines("a: 1\r\n---\r\nb: 2\r\n"), [Ok(1), Ok(3)]);
}

#[test]
fn aliases_are_on_the_line_they_are_written() {
    let d = one("x: &x\n  p: 1\ny:\n  <<: *x\n  q: 2\nz: *x\n").expect("valid");
    for (path, line) in [("x.p", 2), ("y", 3), ("y.p", 2), ("y.q", 5), ("z", 6), ("z.p", 2)] {
        assert_eq!(d.lines.at(path), line, "{path}");
    }
}
