//! The parameters of a call: environment variables (CNI spec 1.1.0, section 2).
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::types::{Code, Error};
use crate::model::ObjectName;

/// The environment of a call. Which of it is needed depends on the verb.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Env(BTreeMap<String, String>);

/// The pod that a runtime of Kubernetes names in `CNI_ARGS`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PodRef {
    /// `K8S_POD_NAMESPACE`.
    pub namespace: String,
    /// `K8S_POD_NAME`.
    pub name: String,
    /// `K8S_POD_UID`, if given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

impl PodRef {
    /// Its name as the model has it.
    #[must_use]
    pub fn object_name(&self) -> ObjectName {
        ObjectName { namespace: self.namespace.clone(), name: self.name.clone() }
    }
}

impl Env {
    /// Of this process: all variables that begin with `CNI_`.
    #[must_use]
    pub fn of_process() -> Self {
        let text = |s: std::ffi::OsString| s.into_string().ok();
        let vars = std::env::vars_os().filter_map(|(k, v)| Some((text(k)?, text(v)?)));
        vars.filter(|(k, _)| k.starts_with("CNI_")).collect()
    }

    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str).filter(|v| !v.is_empty())
    }

    fn need(&self, key: &str) -> Result<&str, Error> {
        self.get(key).ok_or_else(|| wrong(key, "is missing"))
    }

    /// `CNI_COMMAND`.
    ///
    /// # Errors
    /// [`Code::InvalidEnvironment`].
    pub fn command(&self) -> Result<&str, Error> {
        self.need("CNI_COMMAND")
    }

    /// `CNI_CONTAINERID`.
    ///
    /// # Errors
    /// [`Code::InvalidEnvironment`].
    pub fn container(&self) -> Result<&str, Error> {
        let id = self.need("CNI_CONTAINERID")?;
        let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        if id.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric()) && id.bytes().all(inner) {
            return Ok(id);
        }
        Err(wrong("CNI_CONTAINERID", "want a letter or digit, then letters, digits, '_', '.', '-'"))
    }

    /// `CNI_IFNAME`.
    ///
    /// # Errors
    /// [`Code::InvalidEnvironment`].
    pub fn ifname(&self) -> Result<&str, Error> {
        let name = self.need("CNI_IFNAME")?;
        let bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
        if name.len() > 15 || matches!(name, "." | ".." | "all" | "default") || name.chars().any(bad) {
            return Err(wrong("CNI_IFNAME", "want at most 15 bytes without '/', ':' and spaces"));
        }
        Ok(name)
    }

    /// `CNI_NETNS`, if given.
    #[must_use]
    pub fn netns(&self) -> Option<PathBuf> {
        self.get("CNI_NETNS").map(PathBuf::from)
    }

    /// Folders of `CNI_PATH`.
    #[must_use]
    pub fn path(&self) -> Vec<PathBuf> {
        self.get("CNI_PATH").map(|p| std::env::split_paths(p).collect()).unwrap_or_default()
    }

    /// The pod of `CNI_ARGS`.
    ///
    /// # Errors
    /// [`Code::InvalidEnvironment`]: it names none, and what is not known to be a pod can be under no policy.
    pub fn pod(&self) -> Result<PodRef, Error> {
        let args: BTreeMap<&str, &str> = self
            .get("CNI_ARGS")
            .unwrap_or_default()
            .split(';')
            .filter_map(|pair| pair.split_once('='))
            .collect();
        let arg = |key: &str| args.get(key).copied().filter(|v| !v.is_empty()).map(str::to_owned);
        let need = |key: &str| {
            arg(key).ok_or_else(|| {
                wrong("CNI_ARGS", &format!("{key} is missing: a pod's policies go by its name"))
            })
        };
        Ok(PodRef {
            namespace: need("K8S_POD_NAMESPACE")?,
            name: need("K8S_POD_NAME")?,
            uid: arg("K8S_POD_UID"),
        })
    }

    /// The variables, for a delegated plugin.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }

    /// The same with one variable changed.
    #[must_use]
    pub fn with(mut self, key: &str, value: &str) -> Self {
        self.0.insert(key.to_owned(), value.to_owned());
        self
    }
}

impl FromIterator<(String, String)> for Env {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(vars: I) -> Self {
        Self(vars.into_iter().collect())
    }
}

fn wrong(key: &str, reason: &str) -> Error {
    Error::new(Code::InvalidEnvironment, format!("{key}: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> Env {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn container_ids() {
        for (id, good) in [
            ("a", true),
            ("0123abcdef", true),
            ("a_b.c-d", true),
            ("", false),
            ("-a", false),
            (".a", false),
            ("a/b", false),
            ("a b", false),
            ("ä", false),
        ] {
            assert_eq!(env(&[("CNI_CONTAINERID", id)]).container().is_ok(), good, "{id:?}");
        }
    }

    #[test]
    fn interface_names() {
        for (name, good) in [
            ("eth0", true),
            ("net1.5", true),
            ("fifteen-bytes-x", true),
            ("sixteen-bytes-xx", false),
            ("", false),
            (".", false),
            ("..", false),
            ("a/b", false),
            ("a:b", false),
            ("a b", false),
            // Folders of sysctls that are no devices.
            ("all", false),
            ("default", false),
        ] {
            assert_eq!(env(&[("CNI_IFNAME", name)]).ifname().is_ok(), good, "{name:?}");
        }
    }

    #[test]
    fn pods() {
        let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=u1;K8S_X=";
        let pod = env(&[("CNI_ARGS", args)]).pod().unwrap();
        assert_eq!((&*pod.namespace, &*pod.name, pod.uid.as_deref()), ("shop", "web-0", Some("u1")));
        let pod = env(&[("CNI_ARGS", "K8S_POD_NAME=a;K8S_POD_NAMESPACE=b")]).pod().unwrap();
        assert_eq!(pod.uid, None);
        for args in ["", "K8S_POD_NAME=a", "K8S_POD_NAME=;K8S_POD_NAMESPACE=b"] {
            let e = env(&[("CNI_ARGS", args)]).pod().unwrap_err();
            assert_eq!(e.code, Code::InvalidEnvironment as u32, "{args}");
        }
    }
}
