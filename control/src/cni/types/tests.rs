use super::*;

fn conf(text: &str) -> Result<Conf, Error> {
    Conf::parse(text.as_bytes())
}

#[test]
fn what_is_not_said_has_a_default() {
    let c = conf(r#"{"cniVersion":"1.1.0","name":"pods","type":"fastpath-cni"}"#).unwrap();
    assert_eq!((c.name.as_str(), c.wait_ms, c.mtu, c.ipam), ("pods", 5000, None, None));
    let daemon = crate::config::Config::default().daemon;
    assert_eq!((c.state_dir, c.data_dir), (daemon.state_dir, daemon.data_dir), "as the daemon's");
}

#[test]
fn everything_is_read() {
    let c = conf(
        r#"{"cniVersion":"1.0.0","name":"pods","type":"fastpath-cni","state_dir":"/run/b","data_dir":"/var/b",
        "mtu":1400,"wait_ms":100,"ipam":{"type":"host-local","subnet":"10.0.0.0/24"},
        "runtimeConfig":{"portMappings":[{"hostPort":80}]},"args":{"x":1},
        "cni.dev/valid-attachments":[{"containerID":"c1","ifname":"eth0"}],
        "prevResult":{"cniVersion":"1.0.0","interfaces":[{"name":"fpc0"},{"name":"eth0","mac":"02:00:00:00:00:01",
        "sandbox":"/run/netns/x"}],"ips":[{"address":"10.0.0.2/32","interface":1}],"routes":[],"dns":{}}}"#,
    )
    .unwrap();
    assert_eq!((c.state_dir, c.data_dir), (PathBuf::from("/run/b"), PathBuf::from("/var/b")));
    assert_eq!((c.mtu, c.wait_ms, c.ipam.as_deref()), (Some(1400), 100, Some("host-local")));
    let valid = Attachment { container: "c1".to_owned(), ifname: "eth0".to_owned() };
    assert_eq!(c.valid, Some(vec![valid]));
    let prev = c.prev.unwrap();
    assert_eq!(prev.interfaces[1].sandbox, "/run/netns/x");
    assert_eq!(prev.ips[0].address, "10.0.0.2/32".parse().unwrap());
    assert_eq!(c.raw["ipam"]["subnet"], "10.0.0.0/24", "what is not ours is kept for the IPAM plugin");
    let own = conf(r#"{"cniVersion":"1.0.0","name":"pods","ipam":{"type":"fastpath"}}"#).unwrap();
    assert_eq!(own.ipam, None);
}

#[test]
fn what_is_wrong_has_its_code() {
    for (text, code, says) in [
        ("", Code::Decode, "cannot be read"),
        ("[1]", Code::IncompatibleVersion, "0.1.0"),
        (r#"{"cniVersion":"2.0.0","name":5}"#, Code::IncompatibleVersion, "2.0.0"),
        (r#"{"cniVersion":"0.2.0","name":"a"}"#, Code::IncompatibleVersion, "0.2.0"),
        (r#"{"name":"a"}"#, Code::IncompatibleVersion, "0.1.0"),
        (r#"{"cniVersion":"1.1.0"}"#, Code::InvalidConfig, "name"),
        (r#"{"cniVersion":"1.1.0","name":""}"#, Code::InvalidConfig, "name"),
        (r#"{"cniVersion":"1.1.0","name":5}"#, Code::Decode, "expected a string"),
        (r#"{"cniVersion":"1.1.0","name":"a","state_dir":"run"}"#, Code::InvalidConfig, "state_dir"),
        (r#"{"cniVersion":"1.1.0","name":"a","data_dir":"./x"}"#, Code::InvalidConfig, "data_dir"),
        (r#"{"cniVersion":"1.1.0","name":"a","mtu":1279}"#, Code::InvalidConfig, "mtu"),
        (r#"{"cniVersion":"1.1.0","name":"a","wait_ms":60001}"#, Code::InvalidConfig, "wait_ms"),
        (r#"{"cniVersion":"1.1.0","name":"a","ipam":{"type":"../x"}}"#, Code::InvalidConfig, "ipam.type"),
    ] {
        let e = conf(text).unwrap_err();
        assert_eq!(e.code, code as u32, "{text}: {e}");
        assert!(e.msg.contains(says), "{text}: {e}");
    }
}

fn made() -> Made {
    Made {
        host: "fpc0".to_owned(),
        host_mac: Mac([2, 0, 0, 0, 0, 1]),
        ifname: "eth0".to_owned(),
        pod_mac: Mac([2, 0, 0, 0, 0, 2]),
        netns: "/run/netns/x".to_owned(),
        mtu: 1450,
        addresses: vec!["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
    }
}

/// The result of each version, in the words of that version's spec.
#[test]
fn results() {
    let newest = json!({
        "cniVersion": "1.1.0",
        "interfaces": [
            { "name": "fpc0", "mac": "02:00:00:00:00:01", "mtu": 1450 },
            { "name": "eth0", "mac": "02:00:00:00:00:02", "mtu": 1450, "sandbox": "/run/netns/x" },
        ],
        "ips": [
            { "interface": 1, "address": "10.0.0.2/32", "gateway": "169.254.1.1" },
            { "interface": 1, "address": "fd00::2/128", "gateway": "fe80::ecee:eeff:feee:eeee" },
        ],
        "routes": [
            { "dst": "0.0.0.0/0", "gw": "169.254.1.1" },
            { "dst": "::/0", "gw": "fe80::ecee:eeff:feee:eeee" },
        ],
        "dns": {},
    });
    assert_eq!(made().to_json("1.1.0", None), newest);
    for version in VERSIONS {
        let mut want = newest.clone();
        want["cniVersion"] = json!(version);
        if version != "1.1.0" {
            for interface in want["interfaces"].as_array_mut().unwrap() {
                interface.as_object_mut().unwrap().remove("mtu");
            }
        }
        if version.starts_with("0.") {
            want["ips"][0]["version"] = json!("4");
            want["ips"][1]["version"] = json!("6");
        }
        assert_eq!(made().to_json(version, None), want, "{version}");
    }
    let dns = json!({ "nameservers": ["10.96.0.10"] });
    assert_eq!(made().to_json("1.0.0", Some(&dns))["dns"], dns);
    let v6 = Made { addresses: vec!["fd00::2".parse().unwrap()], ..made() };
    assert_eq!(v6.to_json("1.0.0", None)["routes"].as_array().unwrap().len(), 1);
}

#[test]
fn errors() {
    let e = Error::new(Code::TryAgainLater, "no");
    assert_eq!(e.to_json("1.0.0"), json!({ "cniVersion": "1.0.0", "code": 11, "msg": "no" }));
    assert_eq!(e.with("more").to_json("1.0.0")["details"], "more");
}
