//! The API breaks off, forgets, is away.

use super::*;

fn pod(number: u32) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("p{number}"), "namespace": "default", "labels": {"n": number.to_string()}},
        "spec": {"containers": [{"name": "c", "image": "none"}]}})
}

fn pods(update: &Update) -> Vec<String> {
    update.model.pods.keys().map(|k| k.name.clone()).collect()
}

/// The server is killed in the middle of watches. What happened meanwhile is seen, without the old state being lost
/// for a moment.
#[test]
fn a_cut_watch_loses_nothing() {
    let mut server = server(Options::default());
    let source = Source::synced(&server);
    source.has(&server.client().apply(&[pod(1), pod(2)]));
    server.kill_apiserver();
    let state = source.until("the loss is noticed", |_, s| (!s.connected).then(|| s.clone()));
    assert_eq!(pods(&source.update()), ["p1", "p2"], "forwarding goes on by the last state");
    let trouble = state.trouble();
    assert!(trouble[0].starts_with("source: no connection to the Kubernetes API since "), "{trouble:?}");
    let away = state.since;
    assert!(state.last_contact.unwrap() <= away + Duration::from_secs(1));
    server.start_apiserver();
    server.client().delete(&pod(1));
    let after = server.client().apply(&[pod(3)]);
    let update = source.has(&after);
    assert_eq!(pods(&update), ["p2", "p3"]);
    let state = source.until("the connection is back", |_, s| s.connected.then(|| s.clone()));
    assert!(state.since > away && state.trouble().is_empty() && state.error.is_none(), "{state:?}");
    assert!(state.errors > 0);
    // What comes now is seen too: the watches are open, not only the lists done.
    source.has(&server.client().apply(&[pod(4)]));
}

/// The version a watch would be taken up from is compacted away: the answer is 410, and a new list makes up for it.
#[test]
fn a_compacted_version_is_listed_again() {
    // Without the server's own cache every watch is served from etcd, and so is every 410.
    let options = || Options { args: vec!["--watch-cache=false"], ..Options::default() };
    let mut server = server(options());
    let source = Source::synced(&server);
    source.has(&server.client().apply(&[pod(1), pod(2)]));
    let writer_sees = |server: &Server| server.client().list("v1", "Pod", "default").len();
    assert_eq!(writer_sees(&server), 2);
    // While the source is cut off, its pods change and the history of that is dropped. The second server listens
    // elsewhere, so that the source sees nothing before the compaction.
    server.kill_apiserver();
    source.until("the loss is noticed", |_, s| (!s.connected).then_some(()));
    server.start_hidden_apiserver();
    server.client().delete(&pod(1));
    for number in 3..20 {
        server.client().apply(&[pod(number)]);
    }
    server.compact();
    server.kill_apiserver();
    let relists = source.state().relists;
    assert_eq!(pods(&source.update()), ["p1", "p2"], "it cannot know yet");
    server.start_apiserver();
    let mut seen = Vec::new();
    let end = Instant::now() + LIMIT;
    while !pods(&source.update()).contains(&"p19".to_owned()) {
        seen.push(pods(&source.update()).len());
        assert!(Instant::now() < end, "{:?}", source.state());
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(seen.iter().all(|n| *n >= 2), "a list in the making is no state: {seen:?}");
    let update =
        source.until("the deletion is seen", |u, _| (!pods(u).contains(&"p1".to_owned())).then(|| pods(u)));
    assert_eq!(update.len(), 18);
    assert!(source.state().relists > relists, "{:?}", source.state());
    source.has(&server.client().apply(&[pod(20)]));
}

/// A start without the API goes by the state that was saved; a broken file is no state.
#[test]
fn a_start_without_the_api() {
    let mut server = server(Options::default());
    let data = server.dir().join("data");
    let source = Source::start(&server.agent_config(), Some(&data));
    source.has(&server.client().apply(&[pod(1), pod(2)]));
    let model = source.update().model.clone();
    drop(source);
    server.kill_apiserver();

    let source = Source::start(&server.agent_config(), Some(&data));
    let (update, state) =
        source.until("the saved state", |u, s| u.synced.then(|| (u.model.clone(), s.clone())));
    assert_eq!(update, model);
    assert!(!state.connected && state.saved_at.is_some() && !state.synced, "{state:?}");
    assert!(state.trouble()[1].contains("in force is the state saved at"), "{:?}", state.trouble());
    server.start_apiserver();
    source.has(&server.client().apply(&[pod(3)]));
    let state = source.state();
    assert!(state.saved_at.is_none() && state.synced, "{state:?}");
    drop(source);

    // The last state is saved at the end, however little time passed since.
    server.kill_apiserver();
    let source = Source::start(&server.agent_config(), Some(&data));
    source.until("the newest state", |u, _| (pods(u) == ["p1", "p2", "p3"]).then_some(()));
    drop(source);
    let file = data.join("source-state");
    let text = std::fs::read(&file).unwrap();
    std::fs::write(&file, &text[..text.len() / 2]).unwrap();
    let source = Source::start(&server.agent_config(), Some(&data));
    let problem =
        source.until("the broken file is reported", |u, _| u.problems.first().map(ToString::to_string));
    assert!(problem.contains("source-state") && problem.contains("cannot be used"), "{problem}");
    assert!(!source.update().synced, "nothing is made up");
    server.start_apiserver();
    source.until("the truth", |u, _| (u.synced && pods(u).len() == 3).then_some(()));
}
