//! What a plain YAML scalar means to kubectl (sigs.k8s.io/yaml: YAML 1.1 booleans, Go's integer prefixes).
//!
//! One difference: a lone `y` or `n` is text, as in YAML 1.2 and for most writers of YAML. kubectl takes it for a
//! boolean, and then refuses the name or label it mostly is.
#![forbid(unsafe_code)]

use serde_json::{Number, Value};

/// Resolves a plain scalar without a tag.
pub(super) fn resolve(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return true.into();
        }
        "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return false.into();
        }
        _ => {}
    }
    let first = text.as_bytes().first().copied().unwrap_or_default();
    let numeric = first.is_ascii_digit() || matches!(first, b'+' | b'-' | b'.');
    if let Some(value) = Some(text).filter(|_| numeric).and_then(|t| integer(t).or_else(|| float(t))) {
        return value;
    }
    Value::String(text.to_owned())
}

/// An integer: sign, then 0x, 0o, 0b, 0 (octal) or decimal digits; '_' is skipped.
pub(super) fn integer(text: &str) -> Option<Value> {
    let plain = text.replace('_', "");
    let (negative, digits) = match plain.strip_prefix(['+', '-']) {
        Some(digits) => (plain.starts_with('-'), digits),
        None => (false, plain.as_str()),
    };
    let prefixed = |a: &str, b: &str| digits.strip_prefix(a).or_else(|| digits.strip_prefix(b));
    let (radix, digits) = if let Some(d) = prefixed("0x", "0X") {
        (16, d)
    } else if let Some(d) = prefixed("0o", "0O") {
        (8, d)
    } else if let Some(d) = prefixed("0b", "0B") {
        (2, d)
    } else if digits.len() > 1 && digits.starts_with('0') {
        (8, digits)
    } else {
        (10, digits)
    };
    // from_str_radix takes a sign of its own.
    if !digits.bytes().next()?.is_ascii_alphanumeric() {
        return None;
    }
    let magnitude = u64::from_str_radix(digits, radix).ok()?;
    if negative {
        i64::try_from(-i128::from(magnitude)).ok().map(Value::from)
    } else {
        Some(magnitude.into())
    }
}

/// A decimal float that JSON can hold; infinities and NaN stay text, as no Kubernetes field takes them.
pub(super) fn float(text: &str) -> Option<Value> {
    let plain = text.replace('_', "");
    let decimal = plain.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'+' | b'-' | b'e' | b'E'));
    if !decimal || !plain.bytes().any(|b| b.is_ascii_digit()) {
        return None;
    }
    plain.parse::<f64>().ok().and_then(Number::from_f64).map(Value::Number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn scalars_mean_what_kubectl_takes_them_for() {
        for (text, want) in [
            ("", json!(null)),
            ("~", json!(null)),
            ("yes", json!(true)),
            ("off", json!(false)),
            ("nO", json!("nO")),
            ("y", json!("y")),
            ("N", json!("N")),
            ("0", json!(0)),
            ("-0", json!(0)),
            ("8080", json!(8080)),
            ("+5", json!(5)),
            ("-5", json!(-5)),
            ("1_000", json!(1000)),
            ("0x1F", json!(31)),
            ("0644", json!(420)),
            ("0o17", json!(15)),
            ("0b101", json!(5)),
            ("089", json!(89.0)),
            ("18446744073709551615", json!(u64::MAX)),
            ("-9223372036854775808", json!(i64::MIN)),
            ("1.5", json!(1.5)),
            (".5", json!(0.5)),
            ("1e3", json!(1000.0)),
            ("1.2.3", json!("1.2.3")),
            ("10.0.0.1", json!("10.0.0.1")),
            ("10.0.0.0/8", json!("10.0.0.0/8")),
            ("2001-01-01", json!("2001-01-01")),
            ("fd00::1", json!("fd00::1")),
            ("1:2", json!("1:2")),
            ("--1", json!("--1")),
            ("+-1", json!("+-1")),
            ("0x", json!("0x")),
            ("0x-1", json!("0x-1")),
            ("-", json!("-")),
            (".", json!(".")),
            ("...", json!("...")),
            ("1e999", json!("1e999")),
            (".inf", json!(".inf")),
            ("abc", json!("abc")),
        ] {
            assert_eq!(resolve(text), want, "{text:?}");
        }
    }
}
