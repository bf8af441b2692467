import { LanguageSupport, StreamLanguage, type StreamParser } from '@codemirror/language';
import { basename, extension } from '../lib/paths';

const legacy = (parser: StreamParser<unknown>): LanguageSupport => new LanguageSupport(StreamLanguage.define(parser));

type Loader = () => Promise<LanguageSupport>;
interface Language {
  title: string;
  load: Loader | null;
}

const js = (options: { jsx?: boolean; typescript?: boolean }): Loader => async () =>
  (await import('@codemirror/lang-javascript')).javascript(options);
const cpp: Loader = async () => (await import('@codemirror/lang-cpp')).cpp();
const shell: Loader = async () => legacy((await import('@codemirror/legacy-modes/mode/shell')).shell);
const toml: Loader = async () => legacy((await import('@codemirror/legacy-modes/mode/toml')).toml);
const yaml: Loader = async () => legacy((await import('@codemirror/legacy-modes/mode/yaml')).yaml);
const html: Loader = async () => (await import('@codemirror/lang-html')).html();

const python: Language = { title: 'Python', load: async () => (await import('@codemirror/lang-python')).python() };
const BY_EXTENSION: Record<string, Language> = {
  py: python,
  pyi: python,
  js: { title: 'JavaScript', load: js({ jsx: true }) },
  mjs: { title: 'JavaScript', load: js({}) },
  cjs: { title: 'JavaScript', load: js({}) },
  jsx: { title: 'JSX', load: js({ jsx: true }) },
  ts: { title: 'TypeScript', load: js({ typescript: true }) },
  tsx: { title: 'TSX', load: js({ jsx: true, typescript: true }) },
  html: { title: 'HTML', load: html },
  htm: { title: 'HTML', load: html },
  svg: { title: 'SVG', load: html },
  css: { title: 'CSS', load: async () => (await import('@codemirror/lang-css')).css() },
  json: { title: 'JSON', load: async () => (await import('@codemirror/lang-json')).json() },
  md: { title: 'Markdown', load: async () => (await import('@codemirror/lang-markdown')).markdown() },
  c: { title: 'C', load: cpp },
  h: { title: 'C++', load: cpp },
  cc: { title: 'C++', load: cpp },
  cpp: { title: 'C++', load: cpp },
  cxx: { title: 'C++', load: cpp },
  hpp: { title: 'C++', load: cpp },
  sh: { title: 'Shell', load: shell },
  bash: { title: 'Shell', load: shell },
  toml: { title: 'TOML', load: toml },
  yml: { title: 'YAML', load: yaml },
  yaml: { title: 'YAML', load: yaml },
  go: { title: 'Go', load: async () => legacy((await import('@codemirror/legacy-modes/mode/go')).go) },
  rs: { title: 'Rust', load: async () => legacy((await import('@codemirror/legacy-modes/mode/rust')).rust) },
};
const BY_NAME: Record<string, Language> = {
  Dockerfile: { title: 'Dockerfile', load: async () => legacy((await import('@codemirror/legacy-modes/mode/dockerfile')).dockerFile) },
  Makefile: { title: 'Makefile', load: null },
};

export function languageOf(path: string): Language {
  return BY_NAME[basename(path)] ?? BY_EXTENSION[extension(path)] ?? { title: 'Plain text', load: null };
}
