//! The words of the command line.

pub(crate) const USAGE: &str = "usage: sidepath-sim [--seeds N] [--start SEED] [--scenario NAME] \
[--seconds N] [--stride N] [--threads N] [--only A,B,.. --heal US] [--trace] [--brief] \
[--keep-going] [--canary [--bug NAME]]
  --seeds N        how many seeds to run (1)
  --start SEED     the first (1)
  --scenario NAME  one story instead of one drawn from each seed; `list` names them
  --seconds N      safety phase of a drawn story (600; shorter ones vary below two minutes)
  --stride N       look at the balances after every N turns (8)
  --threads N      seeds run at the same time (all processors)
  --only A,B,..    only these steps of the story, as a failure names them
  --heal US        all is healed at this virtual microsecond
  --trace          print everything that happens (also --seed-verbose)
  --brief          of a failure, print the story alone
  --keep-going     do not stop at the tenth failure
  --faulty         break the interface on purpose: every seed must fail
  --canary         plant one bug after the other: each must be found within --seeds (100)
  --bug NAME       with --canary: this bug alone";

/// What was asked for.
#[derive(Debug, Clone)]
pub(crate) struct Words {
    pub(crate) seeds: u64,
    pub(crate) start: u64,
    pub(crate) scenario: String,
    pub(crate) seconds: u64,
    pub(crate) stride: u64,
    pub(crate) threads: usize,
    pub(crate) only: Option<Vec<usize>>,
    pub(crate) heal: Option<u64>,
    pub(crate) aloud: bool,
    pub(crate) brief: bool,
    pub(crate) keep_going: bool,
    pub(crate) faulty: bool,
    pub(crate) canary: bool,
    pub(crate) bug: Option<String>,
}

fn number<T: std::str::FromStr>(value: &str) -> Result<T, String> {
    value.trim().parse().map_err(|_| format!("{value} is no number"))
}

pub(crate) fn read() -> Result<Words, String> {
    let mut words = Words {
        seeds: 1,
        start: 1,
        scenario: "swarm".into(),
        seconds: 600,
        stride: 8,
        threads: std::thread::available_parallelism().map_or(1, Into::into),
        only: None,
        heal: None,
        aloud: false,
        brief: false,
        keep_going: false,
        faulty: false,
        canary: false,
        bug: None,
    };
    let mut seconds = None;
    let mut args = std::env::args().skip(1);
    while let Some(word) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{word} needs a value"));
        match word.as_str() {
            "--seeds" => words.seeds = number(&value()?)?,
            "--start" => words.start = number(&value()?)?,
            "--seconds" => seconds = Some(number::<u64>(&value()?)?.max(10)),
            "--stride" => words.stride = number::<u64>(&value()?)?.max(1),
            "--threads" => words.threads = number(&value()?)?,
            "--scenario" => words.scenario = value()?,
            "--only" => {
                let places: Result<_, _> = value()?.split(',').map(number).collect();
                words.only = Some(places?);
            }
            "--heal" => words.heal = Some(number(&value()?)?),
            "--trace" | "--seed-verbose" => words.aloud = true,
            "--brief" => words.brief = true,
            "--faulty" => words.faulty = true,
            "--canary" => words.canary = true,
            "--bug" => words.bug = Some(value()?),
            "--keep-going" => words.keep_going = true,
            _ => return Err(format!("unknown word {word}")),
        }
    }
    // Bugs show early or not at all: many short stories find more than few long ones.
    words.seconds = seconds.unwrap_or(if words.canary { 60 } else { 600 });
    if words.aloud {
        words.threads = 1;
    }
    Ok(words)
}
