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
        let answer = exchange(listener.address(), b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{answer}");
        assert!(answer.contains("\nagentnet_rendezvous_relay_frames_total 77.0\n"), "{answer}");
        for (request, status) in [
            ("GET / HTTP/1.1", "404"),
            ("GET /metrics/x HTTP/1.1", "404"),
            ("POST /metrics HTTP/1.1", "405"),
            ("nonsense", "400"),
        ] {
            let answer = exchange(listener.address(), format!("{request}\r\nhost: x\r\n\r\n").as_bytes()).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {answer}");
            assert!(!answer.contains("relay_frames"), "{request}: {answer}");
        }
        let long = format!("GET /metrics HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(MAX_HEAD));
        assert!(!exchange(listener.address(), long.as_bytes()).await.contains("200 OK"));
    });
}

#[test]
fn connections_are_few_and_silent_ones_end() {
    run(async {
        let listener = listener();
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS {
            silent.push(TcpStream::connect(listener.address()).await.unwrap());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        let refused = exchange(listener.address(), b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert_eq!(refused, "", "one more was served");
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(HEADER_TIMEOUT + Duration::from_secs(2), silent[0].read_to_end(&mut rest));
        assert!(ended.await.is_ok(), "a client that says nothing keeps its place");
        let answer = exchange(listener.address(), b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    });
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
