//! Floods of handshakes: from senders that are not where they claim to be, and from ones that are. Members still find each other.

use super::members::{Authority, Member, run, settings};
use crate::net::{
    PeerAddress,
    admission::{PER_ADDRESS_MAX, UNPROVEN_MAX},
    tls::SERVER_NAME,
};
use quinn::Endpoint;
use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    rc::Rc,
    time::Duration,
};
use tokio::{net::UdpSocket, task::JoinHandle};

/// More handshakes than members have slots for.
const NOBODIES: usize = 100;

/// Between two packets of a flood: the test shares one thread with it.
const PAUSE: Duration = Duration::from_millis(1);

/// Whether a packet is a Retry: it asks the sender to prove its address.
fn is_retry(packet: &[u8]) -> bool {
    packet.first().is_some_and(|first| first & 0xb0 == 0xb0)
}

/// Aborts its task when it is dropped.
struct Task(JoinHandle<()>);

impl Task {
    fn start(task: impl Future<Output = ()> + 'static) -> Self {
        Self(tokio::task::spawn_local(task))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn socket(host: u8) -> UdpSocket {
    let host = Ipv4Addr::new(127, 0, 0, host);
    UdpSocket::bind((host, 0)).await.unwrap()
}

/// First packets of clients, as they would be sent to a member.
async fn first_packets(authority: &Authority) -> Vec<Vec<u8>> {
    let recorder = socket(1).await;
    let client = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let tls = authority.member("nobody").load("nobody").unwrap().client;
    let to = recorder.local_addr().unwrap();
    let (mut packets, mut open) = (Vec::new(), Vec::new());
    while packets.len() < NOBODIES {
        let config = quinn::ClientConfig::new(tls.clone());
        // A connection that is dropped would be closed with a packet.
        open.push(client.connect_with(config, to, SERVER_NAME).unwrap());
        let mut packet = vec![0; 2_000];
        let length = recorder.recv(&mut packet).await.unwrap();
        packet.truncate(length);
        // Its connection id: a packet that is sent again has the same.
        let id = |packet: &[u8]| packet[6..6 + usize::from(packet[5])].to_vec();
        if packets
            .iter()
            .all(|known: &Vec<u8>| id(known) != id(&packet))
        {
            packets.push(packet);
        }
    }
    packets
}

/// What a flood got for an answer.
#[derive(Default)]
struct Answers {
    nobodies: RefCell<BTreeSet<usize>>,
    retries: Cell<usize>,
}

/// Sends first packets to a member for as long as the tasks live, each from its own address, and nothing after them.
async fn flood(to: &Member, packets: Vec<Vec<u8>>) -> (Vec<Task>, Rc<Answers>) {
    let answers = Rc::new(Answers::default());
    let to: SocketAddr = to.address.parse().unwrap();
    let mut tasks = Vec::new();
    let mut sockets = Vec::new();
    for nobody in 0..packets.len() {
        let socket = Rc::new(socket(u8::try_from(2 + nobody).unwrap()).await);
        sockets.push(Rc::clone(&socket));
        let answers = Rc::clone(&answers);
        tasks.push(Task::start(async move {
            let mut answer = vec![0; 2_000];
            while let Ok(length) = socket.recv(&mut answer).await {
                answers.nobodies.borrow_mut().insert(nobody);
                let retry = usize::from(is_retry(&answer[..length]));
                answers.retries.set(answers.retries.get() + retry);
            }
        }));
    }
    tasks.push(Task::start(async move {
        loop {
            for (socket, packet) in sockets.iter().zip(&packets) {
                socket.send_to(packet, to).await.unwrap();
                tokio::time::sleep(PAUSE).await;
            }
        }
    }));
    (tasks, answers)
}

/// A member that dials once, so that a dial which is refused fails the test.
fn dials_once(id: u64, authority: &Authority) -> Member {
    let mut settings = settings(id, authority.member(&format!("n{id}")));
    settings.pacing.redial_least = Duration::from_mins(10);
    settings.pacing.redial_most = Duration::from_mins(10);
    Member::start_as(settings)
}

#[test]
fn a_member_connects_through_first_packets_from_nobody() {
    run(async {
        let authority = Authority::new();
        let one = Member::start(1, authority.member("n1"));
        let packets = first_packets(&authority).await;
        let (_tasks, answers) = flood(&one, packets).await;
        while answers.nobodies.borrow().len() < NOBODIES {
            tokio::time::sleep(PAUSE).await;
        }
        // It starts when the slots have been full for a while; the flooded member cannot dial it.
        let two = dials_once(2, &authority);
        one.hub.update(vec![PeerAddress {
            addresses: Vec::new(),
            ..two.entry()
        }]);
        two.knows(&[&one]);
        two.reaches(&one).await;
        one.reaches(&two).await;
        assert!(
            answers.retries.get() >= NOBODIES - UNPROVEN_MAX,
            "{} senders were asked to prove their address",
            answers.retries.get()
        );
        one.reports("peers must prove their addresses").await;
        let nobody = |text: &String| text.contains("a peer at 127.0.0.");
        let reported = one.hub.reported();
        assert!(!reported.iter().any(nobody), "{reported:?}");
    });
}

/// How the handshakes of strangers went.
#[derive(Default)]
struct Strangers {
    begun: Cell<usize>,
    refused: Cell<usize>,
}

/// Dials a member from `host` again and again. Each handshake goes as far as the member's answer, with the address proven if the
/// member asks for that, and gets no further.
fn strangers(authority: &Authority, host: u8, to: &Member) -> (Vec<Task>, Rc<Strangers>) {
    let seen = Rc::new(Strangers::default());
    let to: SocketAddr = to.address.parse().unwrap();
    let tls = authority.member("nobody").load("nobody").unwrap().client;
    let tasks = (0..NOBODIES).map(|_| {
        let (seen, tls) = (Rc::clone(&seen), tls.clone());
        Task::start(async move {
            loop {
                let config = quinn::ClientConfig::new(tls.clone());
                let (near, far) = (socket(1).await, socket(host).await);
                far.connect(to).await.unwrap();
                let client = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
                let at = near.local_addr().unwrap();
                let _connecting = client.connect_with(config, at, SERVER_NAME).unwrap();
                begin(&near, &far, &client, &seen).await;
            }
        })
    });
    (tasks.collect(), seen)
}

/// Passes on what a client and a member send each other, until the member's handshake begins or is refused.
async fn begin(near: &UdpSocket, far: &UdpSocket, client: &Endpoint, seen: &Strangers) {
    let client = client.local_addr().unwrap();
    let (mut out, mut back) = (vec![0; 2_000], vec![0; 2_000]);
    loop {
        tokio::select! {
            sent = near.recv(&mut out) => {
                far.send(&out[..sent.unwrap()]).await.unwrap();
            }
            answered = far.recv(&mut back) => {
                let answer = &back[..answered.unwrap()];
                if !is_retry(answer) {
                    // A member's first flight contains its certificate; a refusal is short.
                    let counter = if answer.len() > 1_000 { &seen.begun } else { &seen.refused };
                    counter.set(counter.get() + 1);
                    tokio::time::sleep(100 * PAUSE).await;
                    return;
                }
                near.send_to(answer, client).await.unwrap();
            }
        }
    }
}

#[test]
fn a_member_connects_through_handshakes_that_strangers_do_not_complete() {
    run(async {
        let authority = Authority::new();
        // From another address than the member's, and from the same one.
        for host in [2, 1] {
            // The lower id dials: the connection that it dialled stays.
            let one = Member::start(2, authority.member("n2"));
            let (_tasks, seen) = strangers(&authority, host, &one);
            while seen.refused.get() == 0 || seen.begun.get() < UNPROVEN_MAX + PER_ADDRESS_MAX {
                tokio::time::sleep(PAUSE).await;
            }
            let two = dials_once(1, &authority);
            one.knows(&[&two]);
            two.knows(&[&one]);
            while one.hub.dialled_by(two.id) != Some(two.id) {
                tokio::time::sleep(PAUSE).await;
            }
            two.reaches(&one).await;
            one.reaches(&two).await;
        }
    });
}
