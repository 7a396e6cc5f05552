//! `cargo run -p sidepath-volumes --example init -- PATH|URL NAME`: formats a device for nodes 1 and 2.

fn main() {
    let mut words = std::env::args().skip(1);
    let path = words.next().unwrap_or_default();
    let name = words.next().unwrap_or_else(|| "example".into());
    let o = volumes::InitOptions { name, nodes: vec![1, 2], ..volumes::InitOptions::default() };
    let place = volumes::media::Location::parse(&path).unwrap_or_else(|e| {
        eprintln!("{e}");
        std::process::exit(2);
    });
    match volumes::init(place, &o, |_, _| {}) {
        Ok(s) => println!("{s:#?}"),
        Err(e) => {
            eprintln!("{e}");
            std::process::exit(if e.is_input_error() { 2 } else { 1 });
        }
    }
}
