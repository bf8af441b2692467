/** Questions to the person: one dialog at a time, answered by a promise. */
export interface Question {
  kind: 'confirm' | 'prompt';
  title: string;
  text?: string;
  action: string;
  danger?: boolean;
  label?: string;
  value?: string;
  /** How many characters of `value` are selected: a name without its extension. */
  select?: number;
  problem?: (value: string) => string | null;
}

class Ask {
  question = $state<Question | null>(null);
  #answer: ((value: string | null) => void) | null = null;

  async confirm(q: Omit<Question, 'kind'>): Promise<boolean> {
    return (await this.#put({ ...q, kind: 'confirm' })) !== null;
  }

  prompt(q: Omit<Question, 'kind'>): Promise<string | null> {
    return this.#put({ ...q, kind: 'prompt' });
  }

  answer(value: string | null): void {
    const give = this.#answer;
    this.#answer = null;
    this.question = null;
    give?.(value);
  }

  #put(q: Question): Promise<string | null> {
    this.answer(null);
    this.question = q;
    return new Promise((resolve) => {
      this.#answer = resolve;
    });
  }
}

export const ask = new Ask();
