package metrics

import (
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// own are the metrics of the gateway itself.
type own struct {
	once     sync.Once
	open     prometheus.Gauge
	requests *prometheus.CounterVec
	took     *prometheus.HistogramVec
	process  []prometheus.Collector
}

func (o *own) init() {
	o.once.Do(func() {
		o.open = prometheus.NewGauge(prometheus.GaugeOpts{Name: "fbus_gateway_requests_open", Help: "Requests that the gateway serves now."})
		o.requests = prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fbus_gateway_requests_total", Help: "Requests that the gateway has answered, by route and HTTP status; the status 0 is that of an answer that was cut off.",
		}, []string{"route", "status"})
		o.took = prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "fbus_gateway_request_seconds", Help: "How long requests took.", Buckets: []float64{.001, .005, .01, .05, .1, .5, 1, 5, 10, 60, 300},
		}, []string{"route"})
		o.process = []prometheus.Collector{collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})}
	})
}

func (o *own) collectors() []prometheus.Collector {
	o.init()
	return append([]prometheus.Collector{o.open, o.requests, o.took}, o.process...)
}

// Begin counts a request that the gateway begins to serve. The function that it returns counts its end: the
// route is one of a fixed number, as the pattern of a mux, and the status that of HTTP, 0 if the answer was cut off.
func (m *Metrics) Begin() (end func(route string, status int)) {
	m.own.init()
	m.own.open.Inc()
	start := time.Now()
	return func(route string, status int) {
		m.own.open.Dec()
		m.own.requests.WithLabelValues(route, strconv.Itoa(status)).Inc()
		m.own.took.WithLabelValues(route).Observe(time.Since(start).Seconds())
	}
}
