//! `cargo run -p sidepath-volumes --example init -- PATH NAME`: formats a device for nodes 1 and 2.

fn main() {
    let mut words = std::env::args().skip(1);
    let path = words.next().unwrap_or_default();
    let name = words.next().unwrap_or_else(|| "example".into());
    let o = volumes::InitOptions { name, nodes: vec![1, 2], ..volumes::InitOptions::default() };
    match volumes::init(std::path::Path::new(&path), &o, |_, _| {}) {
        Ok(s) => println!("{s:#?}"),
        Err(e) => {
            eprintln!("{e}");
            std::process::exit(if e.is_input_error() { 2 } else { 1 });
        }
    }
}
