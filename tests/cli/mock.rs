//! A node played by a script: gives its replies in order, one connection each, and keeps the requests.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

pub struct Mock {
    pub url: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub authorization: Option<String>,
    pub body: Vec<u8>,
}

pub struct Reply(Vec<u8>);

impl Reply {
    pub fn json(status: u16, body: &str) -> Self {
        Self::with_length(status, body, body.len())
    }

    /// Announces more than it sends.
    pub fn cut_short(body: &str) -> Self {
        Self::with_length(200, body, body.len() + 100)
    }

    fn with_length(status: u16, body: &str, length: usize) -> Self {
        let head = format!("HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n");
        Self(format!("{head}connection: close\r\n\r\n{body}").into_bytes())
    }
}

/// An error as a node gives it.
pub fn problem(status: u16, detail: &str) -> Reply {
    Reply::json(status, &format!(r#"{{"status":{status},"detail":"{detail}"}}"#))
}

impl Mock {
    /// Listens until the last reply is given.
    pub fn new(replies: Vec<Reply>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&requests);
        // Then the port is free again when this returns.
        let nothing_to_say = replies.is_empty();
        let serve = move || {
            for reply in replies {
                let (mut stream, _) = listener.accept().expect("a connection");
                let request = read(&stream);
                kept.lock().expect("no panic").push(request);
                stream.write_all(&reply.0).expect("sent");
            }
        };
        let serving = thread::spawn(serve);
        if nothing_to_say {
            serving.join().expect("no panic");
        }
        Self { url, requests }
    }

    /// What was asked so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("no panic").clone()
    }
}

fn read(stream: &TcpStream) -> Request {
    let mut reader = BufReader::new(stream);
    let mut line = || {
        let mut line = String::new();
        reader.read_line(&mut line).expect("a line");
        line.trim_end().to_string()
    };
    let first = line();
    let mut words = first.split(' ').map(str::to_string);
    let (method, path) = (words.next().expect("a method"), words.next().expect("a path"));
    let (mut authorization, mut length) = (None, 0);
    loop {
        let header = line();
        let Some((name, value)) = header.split_once(": ") else {
            break;
        };
        match name.to_ascii_lowercase().as_str() {
            "authorization" => authorization = Some(value.to_string()),
            "content-length" => length = value.parse().expect("a number"),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("the whole body");
    Request { method, path, authorization, body }
}
