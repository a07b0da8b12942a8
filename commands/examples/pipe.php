#!/usr/bin/env php
<?php
// hello.php NAME…: call the function hello for all NAMEs at once, over one fbus
// pipe. To try it:
//     fbus run --offer hello='xargs echo hello' -- php hello.php Bob Eve
declare(strict_types=1);

final class Bus
{
    private $process;
    private array $pipes = [];
    private array $answers = [];
    private int $last = 0;

    public function __construct(string ...$flags)
    {
        $this->process = proc_open(['fbus', 'pipe', ...$flags], [['pipe', 'r'], ['pipe', 'w'], STDERR], $this->pipes);
    }

    /** Sends a call, with params or input, and returns its id. Wait for some before you send thousands. */
    public function send(string $method, ?array $params = null, ?string $input = null): int
    {
        $id = ++$this->last;
        $this->write(array_filter(compact('id', 'method', 'params', 'input'), fn ($v) => $v !== null));
        return $id;
    }

    /** The result of a call; a RuntimeException has its exit status as code. */
    public function wait(int $id): mixed
    {
        while (!isset($this->answers[$id])) {
            $line = fgets($this->pipes[1]);
            if ($line === false) {
                throw new RuntimeException('fbus pipe has ended', 255);
            }
            $answer = json_decode($line, true, 512, JSON_THROW_ON_ERROR | JSON_BIGINT_AS_STRING);
            $this->answers[$answer['id']] = $answer;
        }
        $answer = $this->answers[$id];
        unset($this->answers[$id]);
        if (isset($answer['error'])) {
            throw new RuntimeException($answer['error']['message'], $answer['error']['code']);
        }
        return $answer['result'];
    }

    public function cancel(int $id): void
    {
        $this->write(['method' => '$/cancelRequest', 'params' => ['id' => $id]]);
    }

    private function write(array $message): void
    {
        fwrite($this->pipes[0], json_encode(['jsonrpc' => '2.0'] + $message, JSON_THROW_ON_ERROR) . "\n");
    }
}

$bus = new Bus('--text');
try {
    $ids = array_map(fn ($name) => $bus->send('hello', input: $name), array_slice($argv, 1));
    foreach ($ids as $id) {
        echo $bus->wait($id);
    }
} catch (RuntimeException $e) {
    fwrite(STDERR, $e->getMessage() . "\n");
    exit($e->getCode() > 0 ? $e->getCode() : 1);
}
