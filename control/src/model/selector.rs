//! Label selectors (`metav1.LabelSelector`), in one canonical form.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::Labels;

/// A label selector: all requirements must hold; none selects every object.
///
/// Requirements are sorted and distinct, so equal selectors compare equal however they were written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Selector {
    requirements: Vec<Requirement>,
}

/// One requirement on one label key.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Requirement {
    /// Label key.
    pub key: String,
    /// What must hold for it.
    pub operator: Operator,
}

/// The operators of `matchExpressions`; `matchLabels` is `In` with one value.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Operator {
    /// The key is there with one of the values.
    In(BTreeSet<String>),
    /// The key is missing or has none of the values.
    NotIn(BTreeSet<String>),
    /// The key is there.
    Exists,
    /// The key is missing.
    DoesNotExist,
}

impl Requirement {
    /// Whether an object with these labels meets the requirement.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        match &self.operator {
            Operator::In(values) => value.is_some_and(|v| values.contains(v)),
            Operator::NotIn(values) => value.is_none_or(|v| !values.contains(v)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

impl Selector {
    /// From requirements in any order.
    #[must_use]
    pub fn new(mut requirements: Vec<Requirement>) -> Self {
        requirements.sort_unstable();
        requirements.dedup();
        Self { requirements }
    }

    /// Whether it selects every object.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Its requirements, sorted.
    #[must_use]
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Whether it selects an object with these labels.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|r| r.matches(labels))
    }
}

impl FromIterator<(String, String)> for Selector {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(pairs: I) -> Self {
        let one = |(key, value)| Requirement { key, operator: Operator::In(BTreeSet::from([value])) };
        Self::new(pairs.into_iter().map(one).collect())
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        let list =
            |values: &BTreeSet<String>| values.iter().map(String::as_str).collect::<Vec<_>>().join(",");
        match &self.operator {
            Operator::In(values) if values.len() == 1 => write!(f, "{key}={}", list(values)),
            Operator::In(values) => write!(f, "{key} in ({})", list(values)),
            Operator::NotIn(values) if values.len() == 1 => write!(f, "{key}!={}", list(values)),
            Operator::NotIn(values) => write!(f, "{key} notin ({})", list(values)),
            Operator::Exists => f.write_str(key),
            Operator::DoesNotExist => write!(f, "!{key}"),
        }
    }
}

/// As `kubectl -l` writes it; `{}` for the selector of everything.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_everything() {
            return f.write_str("{}");
        }
        for (i, r) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            write!(f, "{r}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(values: &[&str]) -> BTreeSet<String> {
        values.iter().map(ToString::to_string).collect()
    }

    fn selector(key: &str, operator: Operator) -> Selector {
        Selector::new(vec![Requirement { key: key.into(), operator }])
    }

    #[test]
    fn operators() {
        let labels = Labels::from([("app".into(), "web".into()), ("empty".into(), String::new())]);
        for (key, operator, want, text) in [
            ("app", Operator::In(set(&["web", "db"])), true, "app in (db,web)"),
            ("app", Operator::In(set(&["db"])), false, "app=db"),
            ("zone", Operator::In(set(&["db"])), false, "zone=db"),
            ("app", Operator::NotIn(set(&["web"])), false, "app!=web"),
            ("app", Operator::NotIn(set(&["db", "x"])), true, "app notin (db,x)"),
            ("zone", Operator::NotIn(set(&["db"])), true, "zone!=db"),
            ("empty", Operator::Exists, true, "empty"),
            ("zone", Operator::Exists, false, "zone"),
            ("empty", Operator::DoesNotExist, false, "!empty"),
            ("zone", Operator::DoesNotExist, true, "!zone"),
        ] {
            let s = selector(key, operator);
            assert_eq!(s.matches(&labels), want, "{s}");
            assert_eq!(s.to_string(), text);
        }
        assert!(Selector::default().matches(&Labels::new()));
        assert_eq!(Selector::default().to_string(), "{}");
    }

    #[test]
    fn all_requirements_must_hold_in_any_order() {
        let [a, b] = [("a", "1"), ("b", "2")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        let s: Selector = [b.clone(), a.clone()].into_iter().collect();
        assert_eq!(s, [a.clone(), b.clone(), a.clone()].into_iter().collect());
        assert!(!s.matches(&Labels::from([a.clone()])));
        assert!(s.matches(&Labels::from([a, b])));
        assert_eq!(s.to_string(), "a=1,b=2");
    }
}
