/**
 * A program's output as lines of coloured spans: SGR colours, carriage return, backspace, tab and 'erase line'
 * are honoured, every other escape sequence is dropped. Not a terminal: the cursor stays on the last line.
 * At most `maxLines` lines of at most `maxLine` characters are kept, the newest.
 */
export interface Style {
  fg?: string;
  bg?: string;
  bold?: boolean;
  dim?: boolean;
  italic?: boolean;
  underline?: boolean;
  inverse?: boolean;
}

export interface Span {
  text: string;
  style: Style | null;
}

export interface Line {
  id: number;
  spans: Span[];
}

interface Cell {
  char: string;
  style: Style | null;
}

const SEQUENCE =
  // eslint-disable-next-line no-control-regex
  /\x1b\[([0-9:;<=>?]*)([ -/]*)([@-~])|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[PX^_][^\x1b]*\x1b\\|\x1b[ -/]+[0-~]|\x1b[0-OQ-WYZ\\`-~]/y;
/** What may be the beginning of a sequence whose rest has not come yet. */
const UNFINISHED =
  // eslint-disable-next-line no-control-regex
  /^(?:\x1b|\x1b\[[0-9:;<=>?]*[ -/]*|\x1b\][^\x07\x1b]*\x1b?|\x1b[PX^_][^\x1b]*\x1b?|\x1b[ -/]+)$/;

const same = (a: Style | null, b: Style | null): boolean => a === b || JSON.stringify(a) === JSON.stringify(b);

function xterm256(n: number): string {
  if (n < 16) return `var(--ansi-${n})`;
  if (n >= 232) {
    const grey = 8 + (n - 232) * 10;
    return `rgb(${grey},${grey},${grey})`;
  }
  const level = (v: number): number => (v ? 55 + v * 40 : 0);
  const i = n - 16;
  return `rgb(${level(Math.floor(i / 36))},${level(Math.floor(i / 6) % 6)},${level(i % 6)})`;
}

export class AnsiBuffer {
  lines: Line[] = [];
  /** Lines that were let go at the bound. */
  dropped = 0;
  #nextId = 0;
  #cells: Cell[] = [];
  #column = 0;
  #style: Style | null = null;
  #rest = '';

  constructor(
    readonly maxLines = 5000,
    readonly maxLine = 10_000,
  ) {
    this.#newLine();
  }

  clear(): void {
    this.lines = [];
    this.dropped = 0;
    this.#rest = '';
    this.#style = null;
    this.#newLine();
  }

  write(chunk: string): void {
    const text = this.#rest + chunk;
    this.#rest = '';
    let at = 0;
    while (at < text.length) {
      const char = text[at]!;
      if (char === '\x1b') {
        SEQUENCE.lastIndex = at;
        const found = SEQUENCE.exec(text);
        if (found) {
          if (found[3] !== undefined) this.#control(found[1] ?? '', found[3]);
          at += found[0].length;
          continue;
        }
        const tail = text.slice(at);
        if (tail.length < 4096 && UNFINISHED.test(tail)) {
          this.#rest = tail;
          break;
        }
        at += 1;
        continue;
      }
      if (char === '\n') {
        this.#flush();
        this.#newLine();
      } else if (char === '\r') this.#column = 0;
      else if (char === '\b') this.#column = Math.max(0, this.#column - 1);
      else if (char === '\t') {
        do this.#put(' ');
        while (this.#column % 8 && this.#column < this.maxLine);
      }
      else if (char >= ' ' && char !== '\x7f') {
        const code = text.codePointAt(at)!;
        const whole = String.fromCodePoint(code);
        this.#put(whole);
        at += whole.length;
        continue;
      }
      at += 1;
    }
    this.#flush();
  }

  /** The text without colours. */
  text(): string {
    return this.lines.map((line) => line.spans.map((s) => s.text).join('')).join('\n');
  }

  #put(char: string): void {
    if (this.#column >= this.maxLine) return;
    this.#cells[this.#column] = { char, style: this.#style };
    this.#column += 1;
  }

  #newLine(): void {
    this.lines.push({ id: this.#nextId++, spans: [] });
    this.#cells = [];
    this.#column = 0;
    // in steps, so that a flood does not shift the whole array at each line
    const over = this.lines.length - this.maxLines;
    if (over > 0 && (over >= 256 || this.maxLines < 256)) {
      this.lines.splice(0, over);
      this.dropped += over;
    }
  }

  #flush(): void {
    const spans: Span[] = [];
    for (const cell of this.#cells) {
      const last = spans.at(-1);
      if (last && same(last.style, cell.style)) last.text += cell.char;
      else spans.push({ text: cell.char, style: cell.style });
    }
    const line = this.lines.at(-1)!;
    this.lines[this.lines.length - 1] = { id: line.id, spans };
  }

  #control(parameters: string, final: string): void {
    if (final === 'm') this.#sgr(parameters);
    else if (final === 'K') {
      const mode = Number(parameters || 0);
      if (mode === 0) this.#cells.length = Math.min(this.#cells.length, this.#column);
      else if (mode === 2) this.#cells = Array.from({ length: this.#column }, () => ({ char: ' ', style: null }));
    } else if (final === 'C') {
      const wanted = Math.min(this.maxLine, this.#column + Math.max(1, Number(parameters) || 1));
      while (this.#column < wanted) {
        this.#cells[this.#column] ??= { char: ' ', style: null };
        this.#column += 1;
      }
    } else if (final === 'D') this.#column = Math.max(0, this.#column - Math.max(1, Number(parameters) || 1));
    else if (final === 'G') {
      const wanted = Math.min(this.maxLine, Math.max(1, Number(parameters) || 1) - 1);
      while (this.#cells.length < wanted) this.#cells.push({ char: ' ', style: null });
      this.#column = wanted;
    } else if (final === 'J' && parameters === '2') this.clear();
  }

  #sgr(parameters: string): void {
    const codes = parameters.split(/[;:]/).map((c) => Number(c || 0));
    let style: Style = { ...this.#style };
    for (let i = 0; i < codes.length; i += 1) {
      const c = codes[i]!;
      if (c === 0) style = {};
      else if (c === 1) style.bold = true;
      else if (c === 2) style.dim = true;
      else if (c === 3) style.italic = true;
      else if (c === 4) style.underline = true;
      else if (c === 7) style.inverse = true;
      else if (c === 22) {
        delete style.bold;
        delete style.dim;
      } else if (c === 23) delete style.italic;
      else if (c === 24) delete style.underline;
      else if (c === 27) delete style.inverse;
      else if (c >= 30 && c <= 37) style.fg = xterm256(c - 30);
      else if (c >= 90 && c <= 97) style.fg = xterm256(c - 82);
      else if (c >= 40 && c <= 47) style.bg = xterm256(c - 40);
      else if (c >= 100 && c <= 107) style.bg = xterm256(c - 92);
      else if (c === 39) delete style.fg;
      else if (c === 49) delete style.bg;
      else if (c === 38 || c === 48) {
        let color: string | null = null;
        if (codes[i + 1] === 5) {
          const n = codes[i + 2] ?? 0;
          color = n >= 0 && n < 256 ? xterm256(n) : null;
          i += 2;
        } else if (codes[i + 1] === 2) {
          const [r, g, b] = [codes[i + 2] ?? 0, codes[i + 3] ?? 0, codes[i + 4] ?? 0].map((v) => Math.min(255, v));
          color = `rgb(${r},${g},${b})`;
          i += 4;
        }
        if (color) style[c === 38 ? 'fg' : 'bg'] = color;
      }
    }
    this.#style = Object.keys(style).length ? style : null;
  }
}

/** Inline CSS of a span; colours only from our own table or numbers, never from the program's text. */
export function css(style: Style | null): string {
  if (!style) return '';
  let fg = style.fg;
  let bg = style.bg;
  if (style.inverse) [fg, bg] = [bg ?? 'var(--output-bg)', fg ?? 'var(--text)'];
  return [
    fg && `color:${fg}`,
    bg && `background:${bg}`,
    style.bold && 'font-weight:600',
    style.dim && 'opacity:.7',
    style.italic && 'font-style:italic',
    style.underline && 'text-decoration:underline',
  ]
    .filter(Boolean)
    .join(';');
}
