use super::fake_agent::{FakeAgent, ID, error};

fn reply(kind: &str, rtt_ms: f64) -> String {
    let (endpoint, via) = match kind {
        "direct" => ("\"192.0.2.1:41641\"".to_owned(), "null".to_owned()),
        _ => ("null".to_owned(), format!("\"{ID}\"")),
    };
    format!(
        "{{\"id\":\"{ID}\",\"name\":\"data-2\",\"rtt_ms\":{rtt_ms},\"path\":{{\"kind\":\"{kind}\",\
         \"endpoint\":{endpoint},\"via\":{via},\"rtt_ms\":null,\"since_s\":null,\"mtu\":1420}}}}"
    )
}

/// Answers the n-th ping with the n-th of these, the last one for ever.
fn agent(answers: Vec<(u16, String)>) -> FakeAgent {
    let mut left = answers.into_iter().peekable();
    let mut last = None;
    FakeAgent::start(move |_| {
        last = left.next().or_else(|| last.clone());
        last.clone()
    })
}

const FAST: [&str; 3] = ["ping", "data-2", "-i=0.01"];

fn fast<'a>(more: &[&'a str]) -> Vec<&'a str> {
    FAST.into_iter().chain(more.iter().copied()).collect()
}

#[test]
fn replies_and_summary_for_people() {
    let agent = agent(vec![(200, reply("relayed", 21.0)), (504, error("timed_out")), (200, reply("direct", 0.42))]);
    let outcome = agent.run(&fast(&["-c", "3", "--timeout", "0.5"]));
    assert_eq!(
        outcome.whole(),
        "status: 0\n--- stdout\n\
         pong from data-2 (47pjoycnsr) via relayed 47pjoycnsr in 21.0 ms\n\
         no reply within 0.5 s\n\
         pong from data-2 (47pjoycnsr) via direct 192.0.2.1:41641 in 0.42 ms\n\
         3 sent, 2 received, 33 % lost; min 0.42 ms, avg 10.7 ms, max 21.0 ms\n--- stderr\n"
    );
    assert_eq!(agent.asked()[0].line, "POST /v1/ping");
    assert_eq!(agent.asked()[0].body, "{\"peer\":\"data-2\",\"timeout_ms\":500}");
}

#[test]
fn one_document_a_line() {
    let agent = agent(vec![(504, error("timed_out")), (200, reply("direct", 2.0))]);
    let outcome = agent.run(&fast(&["-c", "2", "--json"]));
    let lines: Vec<serde_json::Value> =
        outcome.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((outcome.status, lines.len(), outcome.stderr.as_str()), (Some(0), 3, ""));
    assert_eq!(lines[0]["error"]["code"], "timed_out");
    assert_eq!((lines[1]["seq"].as_u64(), &lines[1]["path"]["kind"]), (Some(2), &"direct".into()));
    assert_eq!(lines[2]["summary"]["loss"], 0.5);
}

#[test]
fn until_direct_stops_there() {
    let agent = agent(vec![(200, reply("relayed", 21.0)), (200, reply("direct", 1.0))]);
    let outcome = agent.run(&fast(&["--until-direct"]));
    assert_eq!((outcome.status, agent.asked().len()), (Some(0), 2), "{}", outcome.whole());
}

#[test]
fn until_direct_fails_when_only_the_relay_answers() {
    let agent = agent(vec![(200, reply("relayed", 21.0))]);
    let outcome = agent.run(&fast(&["--until-direct", "-c", "3"]));
    assert_eq!((outcome.status, agent.asked().len()), (Some(6), 3), "{}", outcome.whole());
}

#[test]
fn no_answer_at_all_is_status_six() {
    let agent = agent(vec![(504, error("timed_out"))]);
    let outcome = agent.run(&fast(&[]));
    assert_eq!((outcome.status, agent.asked().len()), (Some(6), 4), "{}", outcome.whole());
    assert!(outcome.stdout.ends_with("4 sent, 0 received, 100 % lost\n"), "{}", outcome.stdout);
}

#[test]
fn no_trust_is_status_seven_at_once() {
    let agent = agent(vec![(403, error("not_trusted"))]);
    let outcome = agent.run(&fast(&[]));
    assert_eq!(outcome.whole(), "status: 7\n--- stdout\n--- stderr\nerror: the message\nhint: the hint\n");
    assert_eq!(agent.asked().len(), 1);
}
