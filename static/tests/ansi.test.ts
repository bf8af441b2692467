import { describe, expect, it } from 'vitest';
import { AnsiBuffer, css } from '../src/lib/ansi';

const written = (...chunks: string[]): AnsiBuffer => {
  const buffer = new AnsiBuffer();
  for (const chunk of chunks) buffer.write(chunk);
  return buffer;
};

describe('AnsiBuffer', () => {
  it('keeps plain lines', () => {
    expect(written('one\ntwo').text()).toBe('one\ntwo');
  });

  it('colours spans and ends them', () => {
    const [line] = written('a\x1b[31mb\x1b[0mc').lines;
    expect(line!.spans).toEqual([
      { text: 'a', style: null },
      { text: 'b', style: { fg: 'var(--ansi-1)' } },
      { text: 'c', style: null },
    ]);
  });

  it('knows 256 colours, true colours and ignores numbers that are none', () => {
    expect(written('\x1b[38;5;196mx').lines[0]!.spans[0]!.style).toEqual({ fg: 'rgb(255,0,0)' });
    expect(written('\x1b[48;2;1;2;999mx').lines[0]!.spans[0]!.style).toEqual({ bg: 'rgb(1,2,255)' });
    expect(written('\x1b[38;5;300mx').lines[0]!.spans[0]!.style).toBeNull();
  });

  it('lets a carriage return overwrite', () => {
    expect(written('10%\r20%\r\x1b[Kdone\n').text()).toBe('done\n');
    expect(written('abc\rX').text()).toBe('Xbc');
    expect(written('a\r\nb').text()).toBe('a\nb');
  });

  it('waits for the rest of a sequence that comes in two pieces', () => {
    const [line] = written('a\x1b[3', '1mb').lines;
    expect(line!.spans.map((s) => s.text)).toEqual(['a', 'b']);
    expect(line!.spans[1]!.style).toEqual({ fg: 'var(--ansi-1)' });
  });

  it('drops titles, links and unknown sequences, and control characters', () => {
    expect(written('\x1b]0;title\x07a\x1b[?25lb\x1b(Bc\x00\x07d').text()).toBe('abcd');
  });

  it('does not wait for ever for a sequence that never ends', () => {
    const buffer = written(`\x1b]0;${'x'.repeat(5000)}`);
    buffer.write('after');
    expect(buffer.text()).toContain('after');
  });

  it('keeps the newest lines at the bound and counts the others', () => {
    const buffer = new AnsiBuffer(10);
    for (let i = 0; i < 100; i += 1) buffer.write(`${i}\n`);
    expect(buffer.lines.length).toBe(10);
    expect(buffer.dropped).toBe(91);
    expect(buffer.text().startsWith('91\n')).toBe(true);
  });

  it('bounds one endless line, tabs included', () => {
    const buffer = new AnsiBuffer(10, 20);
    buffer.write('x'.repeat(1000) + '\t\t');
    expect(buffer.text().length).toBe(20);
    buffer.write('\r\x1b[999999999C\x1b[999999999G');
    expect(buffer.text().length).toBeLessThanOrEqual(20);
  });

  it('keeps characters outside the basic plane whole', () => {
    expect(written('🙂é').text()).toBe('🙂é');
  });

  it('gives CSS only from numbers and our own names', () => {
    expect(css({ fg: 'var(--ansi-1)', bold: true })).toBe('color:var(--ansi-1);font-weight:600');
    expect(css({ inverse: true })).toBe('color:var(--output-bg);background:var(--text)');
    expect(css(null)).toBe('');
  });
});
