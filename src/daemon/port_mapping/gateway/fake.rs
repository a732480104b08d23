//! A gateway on a loopback address of its own, for tests: the ports of the protocols are fixed.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinHandle;

/// What the fake answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Speaks {
    /// Its ports are closed.
    Nothing,
    /// PCP.
    Pcp,
    /// PCP, and gives 0.0.0.0.
    PcpWithoutAddress,
    /// NAT-PMP; says so to PCP as RFC 6886, section 3.5 wants.
    NatPmp,
    /// NAT-PMP; to PCP that it knows no such operation.
    NatPmpOddly,
    /// Both, and refuses.
    Refusal,
    /// UPnP.
    Upnp,
    /// UPnP, and only for ever.
    UpnpPermanent,
    /// UPnP, and the port is somebody else's.
    UpnpTaken,
}

/// The gateway; gone when dropped.
pub(in super::super) struct Fake {
    pub(in super::super) ip: Ipv4Addr,
    state: Arc<State>,
    tasks: Vec<JoinHandle<()>>,
}

struct State {
    ip: Ipv4Addr,
    speaks: Speaks,
    /// Inner port, outer port and lifetime.
    mapped: Mutex<Option<(u16, u16, u32)>>,
}

static COUNT: AtomicU8 = AtomicU8::new(1);
const EXTERNAL: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
/// What it gives where the port asked for is taken.
const OTHER_PORT: u16 = 50_000;

impl Fake {
    pub(in super::super) async fn new(speaks: Speaks) -> Self {
        let [.., high, low] = std::process::id().to_be_bytes();
        Self::at(Ipv4Addr::new(127, 64 | (high & 63), low, COUNT.fetch_add(1, Ordering::Relaxed)), speaks).await
    }

    /// Another one at the same address.
    pub(in super::super) async fn replaced(mut self, speaks: Speaks) -> Self {
        for task in std::mem::take(&mut self.tasks) {
            task.abort();
            // Its sockets are closed when it has ended.
            let _ = task.await;
        }
        Self::at(self.ip, speaks).await
    }

    async fn at(ip: Ipv4Addr, speaks: Speaks) -> Self {
        let state = Arc::new(State { ip, speaks, mapped: Mutex::new(None) });
        let mut tasks = Vec::new();
        match speaks {
            Speaks::Nothing => {}
            Speaks::Upnp | Speaks::UpnpPermanent | Speaks::UpnpTaken => {
                let search = UdpSocket::bind((ip, 1900)).await.unwrap();
                let http = TcpListener::bind((ip, 0)).await.unwrap();
                let port = http.local_addr().unwrap().port();
                tasks.push(tokio::spawn(answer_searches(search, port)));
                tasks.push(tokio::spawn(Arc::clone(&state).serve(http)));
            }
            _ => {
                let socket = UdpSocket::bind((ip, crab_nat::GATEWAY_PORT)).await.unwrap();
                tasks.push(tokio::spawn(Arc::clone(&state).answer_pmp(socket)));
            }
        }
        Self { ip, state, tasks }
    }

    /// Where it lets others in to `port`.
    pub(in super::super) fn external(&self, port: NonZeroU16) -> SocketAddr {
        let taken = self.state.speaks == Speaks::UpnpTaken;
        SocketAddr::new(EXTERNAL.into(), if taken { OTHER_PORT } else { port.get() })
    }

    /// The port inside that it lets others in to.
    pub(in super::super) fn mapped(&self) -> Option<u16> {
        self.state.mapped.lock().unwrap().map(|(inner, ..)| inner)
    }

    /// For how long it was asked, seconds.
    pub(in super::super) fn lifetime(&self) -> Option<u32> {
        self.state.mapped.lock().unwrap().map(|(.., lifetime)| lifetime)
    }

    /// It starts anew.
    pub(in super::super) fn forget(&self) {
        *self.state.mapped.lock().unwrap() = None;
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl State {
    async fn answer_pmp(self: Arc<Self>, socket: UdpSocket) {
        let mut buffer = [0; 1100];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            let answer = match buffer[0] {
                2 => self.pcp(&buffer[..length], from),
                _ => self.nat_pmp(&buffer[..length]),
            };
            socket.send_to(&answer, from).await.unwrap();
        }
    }

    fn map(&self, inner: u16, outer: u16, lifetime: u32) {
        *self.mapped.lock().unwrap() = (lifetime > 0).then_some((inner, outer, lifetime));
    }

    fn pcp(&self, request: &[u8], from: SocketAddr) -> Vec<u8> {
        let code = match self.speaks {
            Speaks::NatPmp => return vec![0, 0x80, 0, 1, 0, 0, 0, 1],
            Speaks::NatPmpOddly => 4,
            Speaks::Refusal => 2,
            _ => 0,
        };
        let std::net::IpAddr::V4(client) = from.ip() else { panic!("not over IPv4") };
        assert_eq!(request[8..24], client.to_ipv6_mapped().octets(), "the client's address is that of the packet");
        let lifetime = u32::from_be_bytes(request[4..8].try_into().unwrap());
        let [inner, outer] = [40, 42].map(|at| u16::from_be_bytes([request[at], request[at + 1]]));
        let mut answer = vec![2, 0x81, 0, code];
        answer.extend(lifetime.to_be_bytes());
        answer.extend([0; 16]);
        answer.extend(&request[24..44]);
        let external = if self.speaks == Speaks::PcpWithoutAddress { Ipv4Addr::UNSPECIFIED } else { EXTERNAL };
        answer.extend(external.to_ipv6_mapped().octets());
        if code == 0 {
            self.map(inner, outer, lifetime);
        }
        answer
    }

    fn nat_pmp(&self, request: &[u8]) -> Vec<u8> {
        let code = if self.speaks == Speaks::Refusal { 2 } else { 0 };
        let mut answer = vec![0, 0x80 | request[1], 0, code, 0, 0, 0, 1];
        if request[1] == 0 {
            answer.extend(EXTERNAL.octets());
            return answer;
        }
        let [inner, outer] = [4, 6].map(|at| u16::from_be_bytes([request[at], request[at + 1]]));
        let lifetime = u32::from_be_bytes(request[8..12].try_into().unwrap());
        answer.extend(inner.to_be_bytes());
        answer.extend(if lifetime == 0 { 0 } else { outer }.to_be_bytes());
        answer.extend(lifetime.to_be_bytes());
        if code == 0 {
            self.map(inner, outer, lifetime);
        }
        answer
    }

    async fn serve(self: Arc<Self>, listener: TcpListener) {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(Arc::clone(&self).answer_http(stream));
        }
    }

    async fn answer_http(self: Arc<Self>, mut stream: TcpStream) {
        let (head, body) = read_request(&mut stream).await;
        let (status, document) = match head.split_whitespace().nth(1) {
            Some("/description.xml") => ("200 OK", DESCRIPTION.to_owned()),
            Some("/actions.xml") => ("200 OK", actions()),
            _ => match self.act(&head, &body) {
                Ok(document) => ("200 OK", document),
                Err(code) => ("500 Internal Server Error", fault(code)),
            },
        };
        let length = document.len();
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{document}");
        stream.write_all(answer.as_bytes()).await.unwrap();
    }

    fn act(&self, head: &str, body: &str) -> Result<String, u16> {
        let action = ACTIONS.keys().find(|action| head.contains(&format!("#{action}\""))).unwrap();
        let argument = |name: &str| -> u32 {
            let rest = body.split(&format!("<{name}>")).nth(1).unwrap();
            rest.split('<').next().unwrap().parse().unwrap()
        };
        let mut result = String::new();
        match *action {
            "GetExternalIPAddress" => result = format!("<NewExternalIPAddress>{EXTERNAL}</NewExternalIPAddress>"),
            "DeletePortMapping" => {
                let outer = argument("NewExternalPort");
                assert_eq!(self.mapped.lock().unwrap().take().map(|(_, mapped, _)| u32::from(mapped)), Some(outer));
            }
            adding => {
                let inner = u16::try_from(argument("NewInternalPort")).unwrap();
                let mut outer = u16::try_from(argument("NewExternalPort")).unwrap();
                let lifetime = argument("NewLeaseDuration");
                assert!(body.contains("<NewInternalClient>127.0.0.1<"), "{body} from {}", self.ip);
                if self.speaks == Speaks::UpnpPermanent && lifetime != 0 {
                    return Err(725);
                }
                if adding == "AddAnyPortMapping" {
                    outer = OTHER_PORT;
                    result = format!("<NewReservedPort>{outer}</NewReservedPort>");
                } else if self.speaks == Speaks::UpnpTaken && outer != OTHER_PORT {
                    return Err(718);
                }
                *self.mapped.lock().unwrap() = Some((inner, outer, lifetime));
            }
        }
        let service = "urn:schemas-upnp-org:service:WANIPConnection:1";
        Ok(envelope(&format!("<u:{action}Response xmlns:u=\"{service}\">{result}</u:{action}Response>")))
    }
}

async fn answer_searches(socket: UdpSocket, http: u16) {
    let mut buffer = [0; 1500];
    let ip = socket.local_addr().unwrap().ip();
    loop {
        let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
        assert!(buffer[..length].starts_with(b"M-SEARCH * HTTP/1.1\r\n"));
        let answer =
            format!("HTTP/1.1 200 OK\r\nST: upnp:rootdevice\r\nLOCATION: http://{ip}:{http}/description.xml\r\n\r\n");
        socket.send_to(answer.as_bytes(), from).await.unwrap();
    }
}

async fn read_request(stream: &mut TcpStream) -> (String, String) {
    let mut text = String::new();
    loop {
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let mut lengths = head
                .lines()
                .filter_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
            if body.len() >= lengths.next_back().unwrap_or(0) {
                return (head.to_owned(), body.to_owned());
            }
        }
        let mut part = [0; 4096];
        let length = stream.read(&mut part).await.unwrap();
        assert_ne!(length, 0, "{text}");
        text.push_str(std::str::from_utf8(&part[..length]).unwrap());
    }
}

/// Actions of WANIPConnection:2 and what goes in.
static ACTIONS: std::sync::LazyLock<BTreeMap<&str, &[&str]>> = std::sync::LazyLock::new(|| {
    const ADD: &[&str] = &[
        "NewRemoteHost",
        "NewExternalPort",
        "NewProtocol",
        "NewInternalPort",
        "NewInternalClient",
        "NewEnabled",
        "NewPortMappingDescription",
        "NewLeaseDuration",
    ];
    BTreeMap::from([
        ("GetExternalIPAddress", &[][..]),
        ("AddPortMapping", ADD),
        ("AddAnyPortMapping", ADD),
        ("DeletePortMapping", &["NewRemoteHost", "NewExternalPort", "NewProtocol"]),
    ])
});

fn actions() -> String {
    let argument = |name: &&str| format!("<argument><name>{name}</name><direction>in</direction></argument>");
    let action = |(name, arguments): (&&str, &&[&str])| {
        let arguments: String = arguments.iter().map(argument).collect();
        format!("<action><name>{name}</name><argumentList>{arguments}</argumentList></action>")
    };
    let actions: String = ACTIONS.iter().map(action).collect();
    format!(
        "<?xml version=\"1.0\"?><scpd xmlns=\"urn:schemas-upnp-org:service-1-0\"><actionList>{actions}</actionList></scpd>"
    )
}

fn envelope(body: &str) -> String {
    format!(
        "<?xml version=\"1.0\"?><s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\"><s:Body>{body}</s:Body></s:Envelope>"
    )
}

fn fault(code: u16) -> String {
    envelope(&format!(
        "<s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail>\
         <UPnPError xmlns=\"urn:schemas-upnp-org:control-1-0\"><errorCode>{code}</errorCode>\
         <errorDescription>no</errorDescription></UPnPError></detail></s:Fault>"
    ))
}

const DESCRIPTION: &str = "<?xml version=\"1.0\"?><root xmlns=\"urn:schemas-upnp-org:device-1-0\"><device>\
    <deviceType>urn:schemas-upnp-org:device:InternetGatewayDevice:1</deviceType><deviceList><device>\
    <deviceType>urn:schemas-upnp-org:device:WANDevice:1</deviceType><deviceList><device>\
    <deviceType>urn:schemas-upnp-org:device:WANConnectionDevice:1</deviceType><serviceList><service>\
    <serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>\
    <controlURL>/control</controlURL><SCPDURL>/actions.xml</SCPDURL>\
    </service></serviceList></device></deviceList></device></deviceList></device></root>";
