//! What Kubernetes and Linux accept as names.
#![forbid(unsafe_code)]

/// Checks an RFC 1123 label (namespace): at most 63 of a-z, 0-9 and '-', an alphanumeric at both ends.
pub(crate) fn label(name: &str) -> Result<(), String> {
    let ok = name.len() <= 63 && is_label(name);
    if ok {
        Ok(())
    } else {
        Err(format!("{name:?} is not an RFC 1123 label (at most 63 of a-z, 0-9 and '-')"))
    }
}

/// Checks an RFC 1123 subdomain (most objects): at most 253 characters, labels joined by '.'.
pub(crate) fn subdomain(name: &str) -> Result<(), String> {
    let ok = name.len() <= 253 && name.split('.').all(is_label);
    if ok {
        Ok(())
    } else {
        Err(format!("{name:?} is not an RFC 1123 subdomain (at most 253 of a-z, 0-9, '-' and '.')"))
    }
}

fn is_label(name: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

/// Checks a network device name as the kernel does (`dev_valid_name`), printable ASCII only.
pub(crate) fn device(name: &str) -> Result<(), String> {
    let ok = (1..=15).contains(&name.len())
        && name != "."
        && name != ".."
        && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b':');
    if ok {
        Ok(())
    } else {
        Err("a device name has 1 to 15 printable characters without '/' and ':'".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "node-1", "a.b-c.d0", &"a".repeat(253)] {
            assert!(subdomain(good).is_ok(), "{good}");
        }
        for bad in ["", "A", "-a", "a-", "a..b", ".a", "a_b", "a b", "ä", &"a".repeat(254)] {
            assert!(subdomain(bad).is_err(), "{bad}");
        }
        assert!(label("a.b").is_err() && label(&"a".repeat(64)).is_err() && label("kube-system").is_ok());
        for good in ["eth0", "veth1234567890a", "fp-a1", "eth0.10", "br@x"] {
            assert!(device(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "a:1", "veth1234567890ab", "é"] {
            assert!(device(bad).is_err(), "{bad}");
        }
    }
}
