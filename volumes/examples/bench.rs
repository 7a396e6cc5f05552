//! `cargo run --release -p sidepath-volumes --example bench -- PATH`: the bench, as text.

fn main() {
    let path = std::env::args().nth(1).unwrap_or_else(|| "bench-volume".into());
    match volumes::bench(path.as_ref(), &volumes::BenchOptions::default()) {
        Ok(report) => println!("{report:#?}"),
        Err(e) => {
            eprintln!("{e}");
            std::process::exit(1);
        }
    }
}
