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

/// Answers that lead to `location`.
fn moved(location: &str) -> Vec<u8> {
    format!("HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").into_bytes()
}

fn answer(status: &str, media_type: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {media_type}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

/// Answers with these texts, one request each, and gives back the first lines of the requests.
fn asked(answers: Vec<Vec<u8>>) -> (String, JoinHandle<Vec<String>>) {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let base = format!("http://{}", server.local_addr().unwrap());
    let work = std::thread::spawn(move || {
        let mut lines = Vec::new();
        for answer in answers {
            let (mut peer, _) = server.accept().unwrap();
            let mut request = [0; 4096];
            let count = peer.read(&mut request).unwrap();
            lines.push(String::from_utf8_lossy(&request[..count]).lines().next().unwrap_or_default().to_string());
            peer.write_all(&answer).unwrap();
        }
        lines
    });
    (base, work)
}

fn message(output: &Output) -> String {
    output.finished()["error"]["message"].as_str().unwrap_or_default().to_string()
}

#[test]
fn relative_redirects_lead_where_they_say() {
    let install = Install::running();
    let (base, work) = asked(vec![
        moved("good.zip"),
        moved("../up/x.zip"),
        moved("?q=1"),
        moved("/top.zip#here"),
        whole(&install.bundle("2.0").bytes()),
    ]);
    apply(&install, &format!("{base}/a/b/here.zip?x=y"), &[]).expect(0);
    let lines = work.join().unwrap();
    let paths: Vec<&str> = lines.iter().map(|line| line.split(' ').nth(1).unwrap()).collect();
    assert_eq!(paths, ["/a/b/here.zip?x=y", "/a/b/good.zip", "/a/up/x.zip", "/a/up/x.zip?q=1", "/top.zip"]);
    assert_eq!(install.version(), "2.0");
}

#[test]
fn a_redirect_to_another_host_is_followed() {
    let install = Install::running();
    let (there, work) = asked(vec![whole(&install.bundle("2.0").bytes())]);
    let (base, first) = asked(vec![moved(there.strip_prefix("http:").unwrap())]);
    apply(&install, &format!("{base}/a.zip"), &[]).expect(0);
    assert_eq!((first.join().unwrap().len(), work.join().unwrap()), (1, vec!["GET / HTTP/1.1".to_string()]));
}

#[test]
fn redirects_in_a_circle_without_end_or_to_nowhere_are_refused_and_show_no_password() {
    let install = Install::running();
    let before = install.tree();
    for (locations, why) in [
        (vec!["/b", "/a"], "in a circle"),
        (vec!["/1", "/2", "/3", "/4", "/5", "/6", "/7", "/8", "/9", "/10", "/11"], "more than 10 redirects"),
        (vec!["file:///etc/passwd"], "redirected to 'file:///etc/passwd'"),
        (vec!["ftp://me:sesame@h/b?token=sesame"], "redirected to 'ftp://h/b'"),
        (vec!["http://me:sesame@h:99999/b?token=sesame"], "99999 is no port"),
        (vec!["http://me:ses/sesame@/b"], "redirected to 'http:///b'"),
    ] {
        let (base, work) = asked(locations.into_iter().map(moved).collect());
        let output = apply(&install, &format!("{base}/a"), &[]).expect(1);
        work.join().unwrap();
        assert_eq!(output.error_code(), "download-failed");
        assert!(message(&output).contains(why), "{output:?}");
        assert!(!format!("{output:?}").contains("sesame"), "{output:?}");
    }
    assert_eq!(install.tree(), before);
}

#[test]
fn an_address_that_makes_no_sense_is_a_usage_error() {
    let install = Install::new();
    for url in [
        "http://127.0.0.1:99999/a.zip",
        "http://127.0.0.1:0/a.zip",
        "http://me:sesame@127.0.0.1:99999/a.zip?token=sesame",
        "http:///a.zip",
        "https://me:sesame@/a.zip",
        "http://127.0.0.1/a b.zip?token=sesame",
        "ftp://me:sesame@127.0.0.1/a.zip?token=sesame",
    ] {
        let output = apply(&install, url, &[]).expect(2);
        assert!(["bad-url", "unsupported-source"].contains(&output.error_code().as_str()), "{output:?}");
        assert!(!format!("{output:?}").contains("sesame"), "{output:?}");
        let legacy = install.updater(&["--zip-url", url, "--port", "8080"]).expect(2);
        assert!(!format!("{legacy:?}").contains("sesame"), "{legacy:?}");
        assert!(legacy.stderr.starts_with("error: "), "{legacy:?}");
    }
    // Nor is one shown that stands where none belongs.
    let secret = "http://me:sesame@h/a.zip?token=sesame";
    for line in [vec!["apply", "a.zip", secret], vec!["adopt", secret], vec!["verify", "--repair", "--from", secret]] {
        let output = install.updater(&line).expect(2);
        assert!(output.stderr.contains("http://h/a.zip") && !output.stderr.contains("sesame"), "{output:?}");
    }
    assert!(!install.exists(".updater"));
}

#[test]
fn what_comes_in_place_of_a_bundle_is_told_by_its_address() {
    let install = Install::running();
    let mut tar = b"\x1f\x8b\x08".to_vec();
    tar.resize(3000, 7);
    for (body, what) in [
        (b"\n<!DOCTYPE html><html>please log in</html>".to_vec(), "a web page, not a bundle"),
        (br#"{"error": "no"}"#.to_vec(), "JSON, not a bundle"),
        (tar, "gzip data"),
        (Vec::new(), "nothing (0 bytes)"),
        (b"PK\x03\x04 and no zip".to_vec(), "is not a whole zip file"),
    ] {
        let (base, work) = asked(vec![whole(&body), whole(&body)]);
        let url = format!("{base}/a.zip");
        let output = apply(&install, &format!("{url}?token=sesame"), &[]).expect(6);
        assert_eq!((output.error_code().as_str(), output.outcome().as_str()), ("bad-zip", "refused"));
        assert!(message(&output).contains(what) && message(&output).contains(&url), "{output:?}");
        assert_eq!(output.finished()["error"]["path"], url, "{output:?}");
        let plan = install.updater(&["plan", &format!("{url}?token=sesame"), "--json"]).expect(6).object();
        assert_eq!(plan["problems"][0]["path"], url, "{plan}");
        for said in [format!("{output:?}"), plan.to_string()] {
            assert!(!said.contains("sesame") && !said.contains("bundle.zip"), "{said}");
        }
        work.join().unwrap();
    }
}

#[test]
fn the_reason_of_the_server_is_told() {
    let install = Install::running();
    let long = format!("token=sesame\x1b[31m {}", "x".repeat(5000));
    for (answer, said) in [
        (answer("429 Slow", "application/json", br#"{"message": "quota of 5 a day"}"#), "status 429: quota of 5 a day"),
        (answer("503 Busy", "text/plain", long.as_bytes()), "status 503: ...\\u{1b}[31m xxx"),
        (answer("403 No", "text/plain", b"http://me:sesame@h/x?sesame is closed"), "status 403: http://h/x is closed"),
        (answer("404 No", "text/html", b"<html>sesame</html>"), "no such file (status 404)"),
        (answer("302 Found", "text/plain", b"there"), "status 302 and names no other address"),
    ] {
        let (base, work) = asked(vec![answer]);
        let output = apply(&install, &format!("{base}/a.zip?token=sesame"), &[]).expect(1);
        work.join().unwrap();
        assert_eq!(output.error_code(), "download-failed");
        assert!(message(&output).contains(said) && message(&output).len() < 400, "{output:?}");
        assert!(!format!("{output:?}").contains("sesame"), "{output:?}");
    }
}

#[test]
fn a_bundle_for_which_there_is_no_room_is_not_downloaded() {
    let install = Install::running();
    install.write("updater.toml", "[bundle]\nmax_size = \"4000000 TiB\"\n");
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\nPK", 1u64 << 61);
    let (base, work) = asked(vec![head.into_bytes()]);
    let output = apply(&install, &format!("{base}/a.zip"), &[]).expect(1);
    work.join().unwrap();
    assert_eq!(output.error_code(), "no-space", "{output:?}");
    assert!(message(&output).contains(&(1u64 << 61).to_string()), "{output:?}");
    assert_eq!(install.version(), "1.0");
}

/// Every file below the install that holds this text.
fn holding(install: &Install, text: &str) -> Vec<String> {
    let files = walkdir::WalkDir::new(&install.root).into_iter().map(Result::unwrap);
    files
        .filter(|entry| entry.file_type().is_file())
        .filter(|entry| fs::read(entry.path()).unwrap().windows(text.len()).any(|part| part == text.as_bytes()))
        .map(|entry| entry.path().display().to_string())
        .collect()
}

#[test]
fn no_file_that_an_update_leaves_holds_the_token_or_the_password() {
    let install = Install::running();
    let refusal = answer("403 No", "application/json", br#"{"error": "sesame is no token"}"#);
    let broken = whole(&install.bundle("2.0").bytes())[..200].to_vec();
    let (base, work) = asked(vec![
        refusal,
        broken,
        whole(b"<html></html>"),
        moved("/b?token=sesame"),
        whole(&install.bundle("2.0").bytes()),
    ]);
    let url = format!("{}/a.zip?token=sesame", base.replace("http://", "http://me:sesame@"));
    let call = ["--zip-url", &url, "--port", "1"];
    for code in [1, 1, 6, 0] {
        let output = install.updater(&call).expect(code);
        assert!(!format!("{output:?}").contains("sesame"), "{output:?}");
        assert_eq!(holding(&install, "sesame"), [""; 0]);
    }
    work.join().unwrap();
    assert_eq!(install.version(), "2.0");
    assert!(holding(&install, &format!("{base}/a.zip")).iter().any(|file| file.contains("/.updater/log/")));
    let status = install.updater(&["status", "--json"]).expect(0);
    assert!(!status.stdout.contains("sesame"), "{status:?}");
}

/// Starts an update from there, ends it by a signal once `ready` is told, and returns its end and how long that took.
#[cfg(target_os = "linux")]
fn interrupted(install: &Install, url: &str, ready: &dyn Fn()) -> (Output, std::time::Duration) {
    let (out, err) = (install.scratch().join("out"), install.scratch().join("err"));
    let mut command = install.command(&["apply", url, "--json"]);
    command.stdin(Stdio::null()).stdout(fs::File::create(&out).unwrap()).stderr(fs::File::create(&err).unwrap());
    let mut child = command.spawn().unwrap();
    ready();
    let begin = std::time::Instant::now();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let code = child.wait().unwrap().code().unwrap_or(-1);
    let text = |path| fs::read_to_string(path).unwrap();
    (Output { code, stdout: text(&out), stderr: text(&err) }, begin.elapsed())
}

/// A download ends when the signal comes, not when its patience does, which is 20 s and more.
#[cfg(target_os = "linux")]
fn is_interrupted_at_once(install: &Install, url: &str, ready: &dyn Fn()) {
    let (before, pid) = (install.tree(), install.pid());
    let (output, took) = interrupted(install, url, ready);
    assert_eq!((output.expect(1).error_code().as_str(), install.pid()), ("interrupted", pid));
    assert!(took < std::time::Duration::from_secs(10), "{took:?}");
    assert_eq!(install.tree(), before);
}

#[test]
#[cfg(target_os = "linux")]
fn a_signal_ends_a_download_that_stalls() {
    let install = Install::running();
    for said in ["", "HTTP/1.1 200 OK\r\nContent-Le", "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nPK"] {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/a.zip", server.local_addr().unwrap());
        let open = std::cell::RefCell::new(None);
        is_interrupted_at_once(&install, &url, &|| {
            let (mut peer, _) = server.accept().unwrap();
            let _ = peer.read(&mut [0; 4096]).unwrap();
            peer.write_all(said.as_bytes()).unwrap();
            *open.borrow_mut() = Some(peer);
        });
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_signal_ends_a_download_that_cannot_connect() {
    use rustix::net::{AddressFamily, SocketType, bind, getsockname, listen, socket};
    let install = Install::running();
    // Whose queue is full: Linux answers no further request to connect.
    let server = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&server, &std::net::SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    listen(&server, 0).unwrap();
    let address = std::net::SocketAddr::try_from(getsockname(&server).unwrap()).unwrap();
    let patience = std::time::Duration::from_millis(300);
    let queued: Vec<_> = std::iter::from_fn(|| std::net::TcpStream::connect_timeout(&address, patience).ok()).collect();
    assert!(queued.len() < 10, "the queue never fills");
    let wanted = format!(":{:04X} 02 ", address.port());
    is_interrupted_at_once(&install, &format!("http://{address}/a.zip"), &|| {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        // Until it has asked (state 02, SYN_SENT); ours have given up.
        while !fs::read_to_string("/proc/net/tcp").unwrap().contains(&wanted) {
            assert!(std::time::Instant::now() < deadline, "it does not connect");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    });
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
    assert!(error["message"].as_str().unwrap().ends_with("its certificate is signed by itself"), "{error}");
    let plain = answering(vec![b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n".to_vec()]);
    let output = apply(&install, &format!("{}/a.zip", plain.0.replace("http:", "https:")), &[]).expect(1);
    plain.1.join().unwrap();
    assert!(message(&output).contains("does not speak https"), "{output:?}");
    let output = apply(&install, &format!("{base}/down"), &["--insecure"]).expect(1);
    assert!(output.finished()["error"]["message"].as_str().unwrap().contains("from https to http"), "{output:?}");
    assert_eq!(install.version(), "1.0");
    apply(&install, &format!("{base}/a.zip"), &["--insecure"]).expect(0);
    assert_eq!(install.version(), "2.0");
}
