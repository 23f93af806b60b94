//! Bytes on the wire that no well-behaved client sends, and plain HTTP.

use bytes::Bytes;
use h2::{
    SendStream,
    client::{ResponseFuture, SendRequest},
};
use http::{HeaderMap, Request};
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

/// A server that has not answered by then will not answer.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// One HTTP/2 connection, to send gRPC calls whose bytes the test chooses.
#[derive(Debug)]
pub(crate) struct Wire {
    requests: SendRequest<Bytes>,
}

/// What a gRPC call ended with.
#[derive(Debug)]
pub(crate) struct WireAnswer {
    pub(crate) grpc_status: i32,
    pub(crate) message: String,
    pub(crate) body: Vec<u8>,
}

impl Wire {
    pub(crate) async fn connect(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port))
            .await
            .expect("a connection");
        Self::over(stream).await
    }

    /// On a connection that the test has made.
    pub(crate) async fn over(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("a socket option");
        // The limit would end the connection from here, when many small messages are not read yet.
        let (requests, connection) = h2::client::Builder::new()
            .data_frame_budget(usize::MAX)
            .handshake(stream)
            .await
            .expect("an HTTP/2 handshake");
        tokio::spawn(async move {
            // Its calls report how it ended.
            drop(connection.await);
        });
        Self { requests }
    }

    /// Sends `body` as it is, and ends the request stream.
    pub(crate) async fn call(&self, path: &str, body: Vec<u8>) -> WireAnswer {
        timeout(ANSWER_MAX, self.exchange(path, body))
            .await
            .expect("an answer in time")
    }

    async fn exchange(&self, path: &str, body: Vec<u8>) -> WireAnswer {
        let (answer, mut send) = self.begin(path).await;
        // A server may answer with an error before it has read everything, and then sending fails.
        drop(send.send_data(Bytes::from(body), true));
        WireAnswer::read(answer).await
    }

    /// Begins a call whose message the caller sends.
    pub(crate) async fn begin(&self, path: &str) -> (ResponseFuture, SendStream<Bytes>) {
        self.begin_with(path, &[]).await
    }

    /// Begins a call with further headers.
    pub(crate) async fn begin_with(
        &self,
        path: &str,
        headers: &[(&str, &str)],
    ) -> (ResponseFuture, SendStream<Bytes>) {
        let mut request = Request::post(format!("http://127.0.0.1{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(()).expect("a valid request");
        let mut requests = self
            .requests
            .clone()
            .ready()
            .await
            .expect("the connection lives");
        requests.send_request(request, false).expect("a new stream")
    }

    /// A plain `GET` over HTTP/2: its status and its body.
    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        let request = Request::get(format!("http://127.0.0.1{path}"))
            .body(())
            .expect("a valid request");
        let mut requests = self
            .requests
            .clone()
            .ready()
            .await
            .expect("the connection lives");
        let (answer, _) = requests.send_request(request, true).expect("a new stream");
        let (head, mut stream) = answer.await.expect("response headers").into_parts();
        let mut body = Vec::new();
        while let Some(data) = stream.data().await {
            body.extend_from_slice(&data.expect("the whole body"));
        }
        let body = String::from_utf8(body).expect("a body in UTF-8");
        (head.status.as_u16(), body)
    }
}

impl WireAnswer {
    /// Waits for an answer and reads all of it.
    pub(crate) async fn read(answer: ResponseFuture) -> Self {
        let (head, mut stream) = answer.await.expect("response headers").into_parts();
        let mut body = Vec::new();
        while let Some(data) = stream.data().await {
            let Ok(data) = data else { break };
            body.extend_from_slice(&data);
            stream
                .flow_control()
                .release_capacity(data.len())
                .expect("as much as was received");
        }
        let trailers = stream.trailers().await.ok().flatten().unwrap_or_default();
        let field = |name| text(&trailers, name).or_else(|| text(&head.headers, name));
        Self {
            grpc_status: field("grpc-status")
                .and_then(|code| code.parse().ok())
                .expect("a grpc-status"),
            message: percent_decoded(&field("grpc-message").unwrap_or_default()),
            body,
        }
    }
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(
        headers
            .get(name)?
            .to_str()
            .expect("a readable header")
            .to_owned(),
    )
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let digits = tail.get(..2).and_then(|digits| str::from_utf8(digits).ok());
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        if let (b'%', Some(byte)) = (first, byte) {
            bytes.push(byte);
            rest = &tail[2..];
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).expect("a message in UTF-8")
}

/// A gRPC message as it travels: not compressed, length, bytes.
pub(crate) fn frame(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).expect("a test message is below 4 GiB");
    [&[0], &length.to_be_bytes()[..], message].concat()
}

/// Status, lower-cased head and body of an HTTP/1.1 answer.
#[derive(Debug)]
pub(crate) struct HttpAnswer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

/// A plain `GET`, on a connection of its own.
pub(crate) async fn http_get(port: u16, path: &str) -> HttpAnswer {
    let exchange = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port))
            .await
            .expect("a connection");
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n");
        stream
            .write_all(request.as_bytes())
            .await
            .expect("the request is sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        answer
    };
    let answer = timeout(ANSWER_MAX, exchange)
        .await
        .expect("an answer in time");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .expect("a status line");
    HttpAnswer {
        status,
        head: head.to_lowercase(),
        body: body.to_owned(),
    }
}

#[test]
fn percent_escapes_are_undone() {
    assert_eq!(percent_decoded("a%3A%20b%"), "a: b%");
}
