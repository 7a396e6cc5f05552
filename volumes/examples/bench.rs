//! `cargo run --release -p sidepath-volumes --example bench -- PATH|URL`: the bench, as text.

fn main() {
    let path = std::env::args().nth(1).unwrap_or_else(|| "bench-volume".into());
    let place = volumes::media::Location::parse(&path).unwrap_or_else(|e| {
        eprintln!("{e}");
        std::process::exit(2);
    });
    match volumes::bench(place, &volumes::BenchOptions::default()) {
        Ok(report) => println!("{report:#?}"),
        Err(e) => {
            eprintln!("{e}");
            std::process::exit(1);
        }
    }
}
