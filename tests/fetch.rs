//! Bundles from a URL: over http and https, whole or not at all; a network that fails changes nothing.

mod kit;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

use kit::{Install, Output};

/// Answers one request after the other with these texts, then ends.
fn answering(answers: Vec<Vec<u8>>) -> (String, JoinHandle<()>) {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let base = format!("http://{}", server.local_addr().unwrap());
    let work = std::thread::spawn(move || {
        for answer in answers {
            let (mut peer, _) = server.accept().unwrap();
            let mut request = [0; 4096];
            let _ = peer.read(&mut request).unwrap();
            peer.write_all(&answer).unwrap();
        }
    });
    (base, work)
}

fn whole(bytes: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", bytes.len());
    [head.as_bytes(), bytes].concat()
}

fn apply(install: &Install, url: &str, more: &[&str]) -> Output {
    let mut arguments = vec!["apply", url, "--json"];
    arguments.extend(more);
    install.updater(&arguments)
}

#[test]
fn a_bundle_comes_over_http_by_a_redirect_with_progress() {
    let install = Install::running();
    let bytes = install.bundle("2.0").bytes();
    let moved = b"HTTP/1.1 302 Found\r\nLocation: /there.zip\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let (base, work) = answering(vec![moved.to_vec(), whole(&bytes)]);
    let output = apply(&install, &format!("{base}/here.zip"), &[]).expect(0);
    work.join().unwrap();
    assert_eq!((output.outcome().as_str(), install.version().as_str()), ("applied", "2.0"));
    let told = |event: &serde_json::Value| event["stage"] == "fetch" && event["unit"] == "bytes";
    let last = output.events().into_iter().rfind(told).expect("no progress was told");
    assert_eq!((last["done"].as_u64(), last["total"].as_u64()), (Some(bytes.len() as u64), Some(bytes.len() as u64)));
}

#[test]
fn a_plan_of_a_url_leaves_nothing_behind() {
    let install = Install::running();
    let (base, work) = answering(vec![whole(&install.bundle("2.0").bytes())]);
    let plan = install.updater(&["plan", &format!("{base}/a.zip"), "--json"]).expect(0).object();
    work.join().unwrap();
    assert_eq!(plan["bundle"]["files"], 4, "{plan}");
    assert!(!install.exists(".updater"));
}

#[test]
fn what_breaks_off_or_is_refused_changes_nothing() {
    let install = Install::running();
    let (before, pid) = (install.tree(), install.pid());
    let bytes = install.bundle("2.0").bytes();
    let short = whole(&bytes)[..bytes.len() / 2].to_vec();
    let gone = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec();
    let page = whole(b"<html>please log in</html>");
    let (base, work) = answering(vec![short, gone, page]);
    let secret = base.replace("http://", "http://me:secret@");
    let output = apply(&install, &format!("{secret}/a.zip"), &[]).expect(1);
    assert_eq!(output.error_code(), "download-failed");
    let error = output.finished()["error"].clone();
    assert!(error["message"].as_str().unwrap().contains("broke off"), "{error}");
    assert!(!output.stdout.contains("secret") && error["remedy"].is_string(), "{error}");
    let output = apply(&install, &format!("{base}/a.zip"), &[]).expect(1);
    assert!(output.finished()["error"]["message"].as_str().unwrap().contains("404"));
    // A page in place of a bundle is no failure of the network.
    assert_eq!(apply(&install, &format!("{base}/a.zip"), &[]).expect(6).outcome(), "refused");
    work.join().unwrap();
    // Nobody answers any more.
    assert_eq!(apply(&install, &format!("{base}/a.zip"), &[]).expect(1).error_code(), "download-failed");
    apply(&install, "ftp://127.0.0.1/a.zip", &[]).expect(2);
    assert_eq!((install.pid(), install.tree()), (pid, before));
}

#[test]
fn a_bundle_beyond_the_limit_is_not_downloaded() {
    let install = Install::running();
    install.write("updater.toml", "[bundle]\nmax_size = \"100 B\"\n");
    let (base, work) = answering(vec![whole(&install.bundle("2.0").bytes())]);
    let output = apply(&install, &format!("{base}/a.zip"), &[]).expect(1);
    work.join().unwrap();
    assert!(output.finished()["error"]["remedy"].as_str().unwrap().contains("max_size"), "{output:?}");
}

const TLS: &str = "import http.server, ssl\n\
    class H(http.server.SimpleHTTPRequestHandler):\n    \
        def do_GET(self):\n        \
            if self.path == '/down':\n            \
                self.send_response(302); self.send_header('Location', 'http://127.0.0.1:1/a.zip'); self.end_headers()\n        \
            else:\n            super().do_GET()\n\
    s = http.server.HTTPServer(('127.0.0.1', 0), H)\n\
    c = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)\n\
    c.load_cert_chain('c.pem', 'k.pem')\n\
    s.socket = c.wrap_socket(s.socket, server_side=True)\n\
    print(s.server_port, flush=True)\n\
    s.serve_forever()\n";

struct Ended(Child);
impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_self_signed_server_is_believed_only_when_told_so_and_never_leads_to_http() {
    let install = Install::running();
    let folder = tempfile::tempdir().unwrap();
    let words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=x -keyout k.pem -out c.pem";
    let made = Command::new("openssl").args(words.split(' ')).current_dir(folder.path()).output().unwrap();
    assert!(made.status.success());
    fs::write(folder.path().join("a.zip"), install.bundle("2.0").bytes()).unwrap();
    let mut command = Command::new("python3");
    command.args(["-c", TLS]).current_dir(folder.path()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut server = Ended(command.spawn().unwrap());
    let mut line = String::new();
    BufReader::new(server.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let base = format!("https://127.0.0.1:{}", line.trim());

    let output = apply(&install, &format!("{base}/a.zip"), &[]).expect(1);
    let error = output.finished()["error"].clone();
    assert_eq!(error["code"], "download-failed");
    assert!(error["remedy"].as_str().unwrap().contains("--insecure"), "{error}");
    let output = apply(&install, &format!("{base}/down"), &["--insecure"]).expect(1);
    assert!(output.finished()["error"]["message"].as_str().unwrap().contains("from https to http"), "{output:?}");
    assert_eq!(install.version(), "1.0");
    apply(&install, &format!("{base}/a.zip"), &["--insecure"]).expect(0);
    assert_eq!(install.version(), "2.0");
}
