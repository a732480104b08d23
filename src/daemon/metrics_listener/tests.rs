use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

fn listener() -> MetricsListener {
    let counters = Arc::new(ServerCounters::default());
    counters.relay_frames.add(77);
    let socket = MetricsSocket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    socket.serve(Source::Server(counters, now().time)).unwrap()
}

/// What is answered to these bytes, until the connection is closed.
async fn exchange(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    // A reset is an end as well.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

#[test]
fn metrics_can_be_read_and_nothing_else() {
    run(async {
        let listener = listener();
        let answer = exchange(listener.address(), b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{answer}");
        assert!(answer.contains("\nagentnet_rendezvous_relay_frames_total 77.0\n"), "{answer}");
        for (request, status) in [
            ("GET / HTTP/1.1", "404"),
            ("GET /metrics/x HTTP/1.1", "404"),
            ("POST /metrics HTTP/1.1", "405"),
            ("nonsense", "400"),
        ] {
            let answer = exchange(listener.address(), format!("{request}\r\nhost: localhost\r\n\r\n").as_bytes()).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {answer}");
            assert!(!answer.contains("relay_frames"), "{request}: {answer}");
        }
        let long = format!("GET /metrics HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(MAX_HEAD));
        assert!(!exchange(listener.address(), long.as_bytes()).await.contains("200 OK"));
    });
}

const REQUEST: &[u8] = b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n";

#[test]
fn whoever_keeps_connections_open_keeps_nobody_out() {
    run(async {
        let listener = listener();
        let mut silent = Vec::new();
        for _ in 0..4 * CONNECTIONS {
            silent.push(TcpStream::connect(listener.address()).await.unwrap());
        }
        let answer = tokio::time::timeout(Duration::from_secs(1), exchange(listener.address(), REQUEST)).await;
        assert!(answer.as_ref().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200 OK\r\n")), "{answer:?}");
        // Those that made room are closed, the last ones stay until their time is over.
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(Duration::from_millis(200), silent[0].read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "the oldest keeps its place");
        let last = silent.last_mut().unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(200), last.read_to_end(&mut rest)).await.is_err());
        let ended = tokio::time::timeout(HEADER_TIMEOUT + Duration::from_secs(1), last.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "a client that says nothing keeps its place");
    });
}

#[test]
fn who_has_asked_is_not_disturbed_by_those_who_have_not() {
    run(async {
        let listener = listener();
        // It reads nothing yet: its answer waits in the socket.
        let mut asked = TcpStream::connect(listener.address()).await.unwrap();
        asked.write_all(REQUEST).await.unwrap();
        let mut silent = Vec::new();
        for _ in 0..4 * CONNECTIONS {
            silent.push(TcpStream::connect(listener.address()).await.unwrap());
        }
        let mut answer = String::new();
        asked.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with('\n'), "{answer}");
    });
}

#[test]
fn who_has_the_most_connections_makes_room() {
    run(async {
        let task = || tokio::spawn(std::future::pending());
        let reader = |from: &str, has_asked: bool| Reader {
            from: network(from.parse().unwrap()),
            has_asked: Arc::new(AtomicBool::new(has_asked)),
            task: task(),
        };
        let mut readers = Readers::default();
        readers.0.push(reader("192.0.2.1", false));
        readers.0.push(reader("2001:db8::1", true));
        readers.0.push(reader("2001:db8::2", false));
        readers.0.push(reader("2001:db8::3", false));
        readers.make_room();
        assert_eq!(readers.0.len(), 4, "room was made although there was some");
        while readers.0.len() < CONNECTIONS {
            readers.0.push(reader("2001:db8::4", false));
        }
        readers.make_room();
        let asked = |readers: &Readers| {
            readers.0.iter().map(|reader| reader.has_asked.load(Ordering::Relaxed)).collect::<Vec<_>>()
        };
        assert_eq!(readers.0.len(), CONNECTIONS - 1);
        assert_eq!(asked(&readers)[..3], [false, true, false]);
        assert_eq!(readers.0[0].from, network("192.0.2.1".parse().unwrap()), "one alone made room for many");
        // Where all have asked, the oldest goes.
        readers.0.iter().for_each(|reader| reader.has_asked.store(true, Ordering::Relaxed));
        readers.0.push(reader("2001:db8::5", true));
        let second = readers.0[2].task.id();
        readers.make_room();
        assert_eq!(readers.0[1].task.id(), second);
    });
}

#[test]
fn a_name_that_was_made_to_lead_here_is_refused_on_loopback() {
    run(async {
        let listener = listener();
        for (head, status) in [
            ("GET /metrics HTTP/1.1\r\nhost: metrics.example.org\r\n", "421"),
            ("GET /metrics HTTP/1.1\r\nhost: metrics.example.org:9464\r\n", "421"),
            ("GET /metrics HTTP/1.1\r\nhost: localhost\r\nhost: metrics.example.org\r\n", "421"),
            ("GET http://metrics.example.org/metrics HTTP/1.1\r\nhost: localhost\r\n", "421"),
            ("GET /metrics HTTP/1.1\r\nhost: LOCALHOST:1\r\n", "200"),
            ("GET /metrics HTTP/1.1\r\nhost: 127.0.0.1:9464\r\n", "200"),
            ("GET /metrics HTTP/1.1\r\nhost: [::1]:9464\r\n", "200"),
            ("GET /metrics HTTP/1.1\r\nhost: [::1]\r\n", "200"),
            // Of no browser.
            ("GET /metrics HTTP/1.0\r\n", "200"),
        ] {
            let answer = exchange(listener.address(), format!("{head}\r\n").as_bytes()).await;
            assert!(answer.split(' ').nth(1) == Some(status), "{head}: {answer}");
            assert_eq!(answer.contains("relay_frames"), status == "200", "{head}: {answer}");
        }
    });
    for name in ["", "localhost.example.org", "127.0.0.1.example.org", "::1", "[::1", "localhost:x", "localhost:1:2"] {
        assert!(!is_localhost_or_address(name), "{name}");
    }
}

#[test]
fn a_port_in_use_is_said_and_free_again_afterwards() {
    run(async {
        let first = listener();
        let address = first.address();
        assert_eq!(MetricsSocket::bind(address).err().unwrap().code, ErrorCode::PortInUse);
        drop(first);
        tokio::time::sleep(Duration::from_millis(50)).await;
        MetricsSocket::bind(address).unwrap();
    });
}
