//! `standin run.py`: the server that the tests update in place of a Python one.

#[path = "common/standin.rs"]
mod standin;

fn main() {
    match std::env::args_os().nth(1) {
        Some(script) => standin::serve(script.as_ref()),
        None => {
            eprintln!("usage: standin SCRIPT");
            std::process::exit(2);
        }
    }
}
