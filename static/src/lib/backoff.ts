/** Waiting times between attempts, in milliseconds: doubling from `first` up to `most`, with up to a fifth taken off. */
export class Backoff {
  #attempt = 0;

  constructor(
    readonly first = 500,
    readonly most = 15_000,
    readonly random: () => number = Math.random,
  ) {}

  get attempts(): number {
    return this.#attempt;
  }

  next(): number {
    const whole = Math.min(this.most, this.first * 2 ** Math.min(this.#attempt, 30));
    this.#attempt += 1;
    return Math.round(whole * (1 - 0.2 * this.random()));
  }

  reset(): void {
    this.#attempt = 0;
  }
}
